"""Where may it go? Pure functions of a call, the configuration and a frozen view of the pool."""

from gateway.routing.affinity import HINTS, kept_together
from gateway.routing.aliases import split_alias, stands_for, unaliased
from gateway.routing.plan import BY_MODEL, BY_TASK, plan
from gateway.routing.view import InstanceView, ModelView, PoolView

__all__ = [
    "BY_MODEL",
    "BY_TASK",
    "HINTS",
    "InstanceView",
    "ModelView",
    "PoolView",
    "kept_together",
    "plan",
    "split_alias",
    "stands_for",
    "unaliased",
]
