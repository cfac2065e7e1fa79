"""Who can take a call now? The only room that remembers: the pool, its line, and each instance's health and breaker.

Enter by this door. How the room works, and how it is tested: `design.md` beside this file.
"""

from __future__ import annotations

from gateway.instances.health import watch
from gateway.instances.instance import Instance, Lease, LeaseState, Timer
from gateway.instances.line import DemandView, Order, Outlook, Ticket, Waiter
from gateway.instances.memory import Contents, Resident
from gateway.instances.placement import Placement
from gateway.instances.pool import MakeOrder, Observer, Pool
from gateway.instances.roster import Roster

__all__ = [
    "Contents",
    "DemandView",
    "Instance",
    "Lease",
    "LeaseState",
    "MakeOrder",
    "Observer",
    "Order",
    "Outlook",
    "Placement",
    "Pool",
    "Resident",
    "Roster",
    "Ticket",
    "Timer",
    "Waiter",
    "watch",
]
