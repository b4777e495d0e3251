"""How much of the devices' time passes of queries may waste, and how patient queries are for it.

A pass for a few queries costs what every pass costs, and that could have been shared with the documents
that it holds up. The budget is a bucket: a share of all device time flows in, and what passes of queries
waste is taken out.

Law: patience grows with what was spent, so both settle where as much is taken out as flows in. A full bucket
means that a query waits for nobody, an empty one that it waits for as long as it may.
"""

from math import inf

_BURST_S = 1.0
"""The waste of so much time may come all at once."""


class WasteBudget:
    """Owns what may still be wasted."""

    def __init__(self, *, share: float, num_slots: int) -> None:
        """Begin with a full bucket.

        Args:
            share: Part of the time of all devices that may be wasted; 0 for none.
            num_slots: How many devices there are.
        """
        self._share = share
        self._rate = share * num_slots
        self._left_s = self._most_s
        self._at_s = -inf

    @property
    def _most_s(self) -> float:
        return self._rate * _BURST_S

    def set_num_slots(self, num_slots: int, now_s: float) -> None:
        """From now on so many devices share what may be wasted."""
        self._refill(now_s)
        self._rate = self._share * num_slots
        self._left_s = min(self._left_s, self._most_s)

    def left_s(self, now_s: float) -> float:
        """What may be wasted now; negative after a pass that wasted more than there was."""
        self._refill(now_s)
        return self._left_s

    def spent_part(self, now_s: float) -> float:
        """How much of the bucket is empty: 0 if nothing was wasted lately, 1 if all of it is spent.

        0 as well where nothing may be wasted: there is no bucket.
        """
        self._refill(now_s)
        return min(1.0, 1 - self._left_s / self._most_s) if self._most_s else 0.0

    def spend(self, wasted_s: float, now_s: float, *, may_owe: bool) -> None:
        """Take out what a pass wastes: down to nothing, or into the debt of one pass.

        Debts do not add up: full passes break in whatever was wasted, and after a minute of them small ones
        must not wait for minutes.
        """
        self._refill(now_s)
        least_s = min(self._left_s, -wasted_s if may_owe else 0.0)
        self._left_s = max(least_s, self._left_s - wasted_s)

    def _refill(self, now_s: float) -> None:
        if now_s > self._at_s:
            if self._rate:
                self._left_s = min(self._most_s, self._left_s + self._rate * (now_s - self._at_s))
            self._at_s = now_s
