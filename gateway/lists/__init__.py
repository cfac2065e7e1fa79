"""What models there are, as clients want it told: entries over the whole pool, their details, and the virtual ones."""

from gateway.lists import entries
from gateway.lists.shows import Shows
from gateway.lists.virtual import Facts, Virtual

__all__ = ["Facts", "Shows", "Virtual", "entries"]
