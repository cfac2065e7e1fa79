"""Where may it go? Pure functions of a call, the configuration and a frozen view of the pool."""

from gateway.routing.affinity import HINTS, home, seed
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
    "home",
    "plan",
    "seed",
    "split_alias",
    "stands_for",
    "unaliased",
]
