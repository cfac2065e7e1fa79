"""Who can take a call now? The only room that remembers: the pool, its line, and each instance's health and breaker.

Enter by this door. How the room works, and how it is tested: `design.md` beside this file.
"""

from __future__ import annotations

from gateway.instances.health import watch
from gateway.instances.instance import Instance, Lease, LeaseState, Timer
from gateway.instances.line import FirstCome, Order, Waiter
from gateway.instances.pool import Observer, Pool

__all__ = ["FirstCome", "Instance", "Lease", "LeaseState", "Observer", "Order", "Pool", "Timer", "Waiter", "watch"]
