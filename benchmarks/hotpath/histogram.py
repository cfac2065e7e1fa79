"""Counts of whole numbers in buckets that grow with them: quantiles to 3 %, whatever comes, in little memory."""

from __future__ import annotations

FINE = 5  # bits kept of each number

# Numbers below 2**41 have their places: in microseconds that is 25 days.
_SIZE = 37 << FINE


class Histogram:
    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0] * _SIZE
        self.total = 0

    def add(self, value: int) -> None:
        self.total += 1
        shift = value.bit_length() - FINE - 1
        if shift <= 0:
            self._counts[max(value, 0)] += 1
        else:
            self._counts[min((shift << FINE) + (value >> shift), _SIZE - 1)] += 1

    def quantile(self, share: float) -> float:
        """The value that `share` of them do not exceed; 0 where there are none."""
        wanted, seen = share * self.total, 0
        for place, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return _middle(place)
        return 0.0


def _middle(place: int) -> float:
    """Of the numbers in that bucket."""
    shift = max((place >> FINE) - 1, 0)
    if shift == 0:
        return float(place)
    return float(((place - (shift << FINE)) << shift) + (1 << shift) / 2)
