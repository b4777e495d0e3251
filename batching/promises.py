"""Who was refused and told when to come back, and how much room that takes from newcomers.

Law: a promise holds for whoever comes back at its time, whatever came meanwhile; and it takes nothing from
the others that would be there again by then. So a lane whose refused callers never come back stays as busy as
if nothing had been promised.
"""

from bisect import insort_right
from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

MAX_WAIT_S = 60.0
"""Nothing is promised for later, and no client is told more (``MAX_RETRY_AFTER_S`` in app/answers.py): who
would have to wait longer comes back as if for the first time."""
_EARLY_S = 0.05
"""Clocks differ, and a wait is told in whole milliseconds: who comes so early is on time."""
_GRACE_S = 1.5
"""So late somebody may come. A wait in whole seconds, as HTTP has it, is up to one too long, and to read a
request again takes its time."""
_BUCKET_S = 0.1
"""Promises of one such moment are counted together."""
_MOST_OF_A_TICKET = 16
"""Equal requests have equal tickets. Who sends the same again and again gets no more promises for it."""
_MOST_PROMISES = 50_000
"""Of a lane, with those redeemed that would not have lapsed yet: some 30 MB. Who is refused beyond them is
told a time, but nothing is kept for him."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Promise:
    """Room for one submission."""

    tenant: str
    num_entries: int
    work_s: float
    """Device seconds of its entries."""
    due_s: float
    """When it was told to come back."""

    @property
    def lapses_s(self) -> float:
        """When nobody counts with it any more."""
        return self.due_s + _GRACE_S

    def is_due(self, now_s: float) -> bool:
        """Whether it has come at its time, or after it."""
        return now_s >= self.due_s - _EARLY_S


class PromiseBook:
    """The promises of one lane."""

    def __init__(self) -> None:
        # Those of a ticket in the order of their times.
        self._promises: dict[Hashable, list[Promise]] = {}
        # What is promised for each moment, in entries and in seconds; and these moments in their order.
        self._buckets: dict[int, tuple[int, float]] = {}
        self._order: list[int] = []
        self._of_tenants: dict[str, tuple[int, float]] = {}
        self._num_entries = 0
        self._work_s = 0.0
        # A heap of (when it lapses, tie-break, ticket, promise); redeemed ones are dropped when met.
        self._lapsing: list[tuple[float, int, Hashable, Promise]] = []
        self._tie_break = count()

    def keep(self, ticket: Hashable, promise: Promise) -> Promise:
        """Keep room for a promise, unless there are too many.

        Returns:
            What to tell: the promise itself, or the last one of its ticket if that has as many as it may.
        """
        if len(self._lapsing) >= _MOST_PROMISES:
            return promise
        own = self._promises.setdefault(ticket, [])
        if len(own) >= _MOST_OF_A_TICKET:
            return own[-1]
        # Waits get shorter, too: when a runner is back, or others did not come.
        insort_right(own, promise, key=lambda one: one.due_s)
        heappush(self._lapsing, (promise.lapses_s, next(self._tie_break), ticket, promise))
        self._count(promise, 1)
        return promise

    def is_due(self, ticket: Hashable, now_s: float) -> bool:
        """Whether whoever comes with this ticket now comes at a time that was told."""
        return self._due(ticket, now_s) is not None

    def redeem(self, ticket: Hashable, now_s: float) -> None:
        """Count no more with a ticket's first promise that is due, if there is one: somebody came for it.

        Whoever comes earlier leaves it: he may be somebody else who asks for the same.
        """
        if due := self._due(ticket, now_s):
            self._remove(ticket, due)

    def total_of(self, tenant: str, now_s: float, *, but_for: Hashable = None) -> tuple[int, float]:
        """What is promised to one tenant, in entries and in device seconds.

        Without the promise that is due to the ticket ``but_for``: who comes for it must not count twice.
        """
        due = self._due(but_for, now_s)
        num_entries, work_s = self._of_tenants.get(tenant, (0, 0.0))
        return (num_entries, work_s) if due is None else (num_entries - due.num_entries, work_s - due.work_s)

    def total(self, now_s: float) -> tuple[int, float]:
        """All that is promised, in entries and in device seconds."""
        self._forget_lapsed(now_s)
        return self._num_entries, self._work_s

    def most_in_the_way(self, now_s: float, *, work_s: float, speed: float) -> float:
        """Device seconds that must be left free for it now.

        What is promised up to a moment, less what the lane will have been given by then; at the moment at
        which that is most. Moments at which all that is there now will have gone do not count: it is in
        nobody's way then.

        Args:
            now_s: The present moment.
            work_s: Device seconds that would be there.
            speed: Device seconds that the lane is given in a second.
        """
        self._forget_lapsed(now_s)
        most_s = promised_s = 0.0
        for bucket in self._order:
            ahead_s = max(0.0, bucket * _BUCKET_S - now_s)
            if speed * ahead_s > work_s:
                break
            promised_s += self._buckets[bucket][1]
            most_s = max(most_s, promised_s - speed * ahead_s)
        return most_s

    def _due(self, ticket: Hashable, now_s: float) -> Promise | None:
        self._forget_lapsed(now_s)
        own = self._promises.get(ticket)
        return own[0] if own and own[0].is_due(now_s) else None

    def _forget_lapsed(self, now_s: float) -> None:
        while self._lapsing and self._lapsing[0][0] <= now_s:
            _, _, ticket, promise = heappop(self._lapsing)
            if promise in self._promises.get(ticket, ()):
                self._remove(ticket, promise)

    def _remove(self, ticket: Hashable, promise: Promise) -> None:
        own = self._promises[ticket]
        own.remove(promise)
        if not own:
            del self._promises[ticket]
        self._count(promise, -1)

    def _count(self, promise: Promise, sign: int) -> None:
        bucket = int(promise.due_s / _BUCKET_S)
        if bucket not in self._buckets:
            insort_right(self._order, bucket)
        _add(self._buckets, bucket, promise, sign)
        if bucket not in self._buckets:
            self._order.remove(bucket)
        _add(self._of_tenants, promise.tenant, promise, sign)
        self._num_entries += sign * promise.num_entries
        self._work_s = self._work_s + sign * promise.work_s if self._num_entries else 0.0


def _add(totals: dict[K, tuple[int, float]], key: K, promise: Promise, sign: int) -> None:
    """Add a promise to a total, or take it off; what comes to nothing is left out."""
    num_entries, work_s = totals.get(key, (0, 0.0))
    num_entries += sign * promise.num_entries
    if num_entries:
        totals[key] = num_entries, work_s + sign * promise.work_s
    else:
        del totals[key]
