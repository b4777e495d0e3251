"""A scheduler on a virtual clock, with devices that only take time; its laws are checked at every step.

Law by law: an entry ends once, and in one way; an expired or cancelled entry is never in a pass; a pass
keeps its budgets; queries are taken in their order; a free slot and waiting work never stand beside each
other; the counts are those of an independent book.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

from batching import (
    Entry,
    Lane,
    LaneLoad,
    Limits,
    Pass,
    QueueFullError,
    Scheduler,
    Shape,
    SubmissionTooLargeError,
)
from tests.batching.fakes import known_cost


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A submission, and what befalls it."""

    at_s: float
    lane: Lane
    sizes: tuple[int, ...]
    timeout_s: float | None = None
    cancelled_after_s: float | None = None
    raising: frozenset[int] = frozenset()
    """Indexes of entries that make any pass raise."""
    killing: frozenset[int] = frozenset()
    """Indexes of entries that kill any runner."""


@dataclass(eq=False)
class Run:
    """One pass, as it went."""

    composed: Pass
    end_s: float
    died: bool = False
    raised: bool = False


@dataclass
class Simulation:
    """Plays arrivals to the end. Read the records afterwards."""

    limits: Limits
    num_slots: int = 1
    dying_passes: Collection[int] = ()
    """Numbers of passes whose runner dies for no fault of theirs."""
    checks_all: bool = True
    """Also hold the whole backlog against every step: quadratic, so not for long backlogs."""

    now_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    ends: dict[Entry, str] = field(default_factory=dict)
    ended_s: dict[Entry, float] = field(default_factory=dict)
    refused: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cost = known_cost()
        self.scheduler = Scheduler(self.limits, cost=self.cost, num_slots=self.num_slots)
        self.waiting: set[Entry] = set()
        self.running: list[Run] = []
        self.culprits: dict[Entry, str] = {}
        self.retried: set[Entry] = set()
        self._events: list[tuple[float, int, object]] = []
        self._order = count()

    def play(self, arrivals: Collection[Arrival], *, until_s: float = inf) -> None:
        for arrival in arrivals:
            self._at(arrival.at_s, arrival)
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, event = heappop(self._events)
            match event:
                case Arrival():
                    self._arrive(event)
                case Run():
                    self._end(event)
                case tuple():
                    self._cancel(event)
                case _:
                    pass  # The scheduler asked to be asked again.
            self._expire()
            self._start_passes()
            if self.checks_all:
                self._check_books()
            if (moment_s := self.scheduler.next_event_s(self.now_s)) is not None:
                assert moment_s > self.now_s, "an event that is always now would spin"
                if not any(event is None and at_s <= moment_s for at_s, _, event in self._events[:4]):
                    self._at(moment_s, None)
        assert until_s < inf or not self.waiting, "something waits for ever"
        assert until_s < inf or not self.running

    def _at(self, at_s: float, event: object) -> None:
        heappush(self._events, (at_s, next(self._order), event))

    def _arrive(self, arrival: Arrival) -> None:
        deadline_s = None if arrival.timeout_s is None else self.now_s + arrival.timeout_s
        entries = tuple(
            Entry(
                payload=None,
                lane=arrival.lane,
                num_tokens=size,
                arrival_s=self.now_s,
                deadline_s=deadline_s,
            )
            for size in arrival.sizes
        )
        fits = self._has_room(entries)
        try:
            self.scheduler.admit(entries, self.now_s)
        except SubmissionTooLargeError:
            wait_s = inf
        except QueueFullError as refusal:
            wait_s = refusal.retry_after_s
        else:
            wait_s = 0.0
        if wait_s > 0:
            assert not fits, "refused although there was room"
            self.refused.append(arrival)
            return
        assert fits, "admitted beyond the bound"
        self.waiting.update(entries)
        self.culprits |= {entries[i]: "raises" for i in arrival.raising if i < len(entries)}
        self.culprits |= {entries[i]: "kills" for i in arrival.killing if i < len(entries)}
        if arrival.cancelled_after_s is not None:
            self._at(self.now_s + arrival.cancelled_after_s, entries)

    def _has_room(self, entries: Collection[Entry]) -> bool:
        if not self.checks_all:
            return True
        lane = next(iter(entries)).lane
        waiting = [entry for entry in self.waiting if entry.lane is lane]
        return (
            len(waiting) + len(entries) <= self.limits.max_waiting_entries[lane]
            and sum(entry.num_tokens for entry in (*waiting, *entries))
            <= self.limits.max_waiting_tokens[lane]
        )

    def _cancel(self, entries: Collection[Entry]) -> None:
        for entry in entries:
            self.scheduler.cancel(entry)
            if entry not in self.ends:
                self._note(entry, "cancelled")

    def _expire(self) -> None:
        for entry in self.scheduler.expire(self.now_s):
            assert entry.deadline_s is not None
            assert entry.deadline_s <= self.now_s, "expired too early"
            self._note(entry, "expired")
        for entry in self.waiting if self.checks_all else ():
            assert entry.deadline_s is None or entry.deadline_s > self.now_s, "waits beyond its deadline"

    def _note(self, entry: Entry, end: str) -> None:
        assert entry not in self.ends, f"{end} after {self.ends[entry]}"
        self.ends[entry] = end
        self.ended_s[entry] = self.now_s
        self.waiting.discard(entry)

    def _start_passes(self) -> None:
        while len(self.running) < self.num_slots:
            composed = self.scheduler.next_pass(self.now_s)
            if composed is None:
                assert not self.waiting or self.limits.max_wait_s > 0, "a free slot beside waiting work"
                return
            self._check_pass(composed)
            self.waiting.difference_update(composed.entries)
            run = Run(composed, self.now_s + self.cost.predict_s(Shape(num_tokens=composed.num_tokens)))
            fates = {self.culprits.get(entry) for entry in composed.entries}
            run.died = len(self.runs) in self.dying_passes or "kills" in fates
            run.raised = "raises" in fates
            self.runs.append(run)
            self.running.append(run)
            self._at(run.end_s, run)

    def _check_pass(self, composed: Pass) -> None:
        entries, limits = composed.entries, self.limits
        assert entries
        assert len(set(entries)) == len(entries), "an entry twice in one pass"
        assert self.waiting.issuperset(entries), "runs what does not wait"
        assert len(entries) <= limits.max_pass_entries
        assert composed.num_tokens <= limits.max_pass_tokens or len(entries) == 1
        if self.checks_all:
            self._check_order(composed)

    def _check_order(self, composed: Pass) -> None:
        entries, limits = composed.entries, self.limits
        is_retry = any(entry in self.retried for entry in entries)
        if is_retry:
            assert self.retried.issuperset(entries), "what failed before was mixed with others"
            assert len({entry.lane for entry in entries}) == 1
        queries = [entry for entry in entries if entry.lane is Lane.QUERY]
        if entries[0].lane is Lane.QUERY and len(queries) < len(entries):
            assert composed.num_tokens <= limits.fill_tokens, "a query pass was filled too far"
        if queries and not is_retry:
            keys = [(_deadline_s(query), query.arrival_s) for query in queries]
            assert keys == sorted(keys), "queries out of order"
            passed_by = self.waiting.difference(entries, self.retried)
            assert all(
                (_deadline_s(other), other.arrival_s) >= keys[-1]
                for other in passed_by
                if other.lane is Lane.QUERY
            ), "a query was overtaken"
        if entries[0].lane is Lane.DOCUMENT and not is_retry:
            oldest_s = min(
                other.arrival_s
                for other in self.waiting
                if other.lane is Lane.DOCUMENT and other not in self.retried
            )
            assert entries[0].arrival_s == oldest_s, "documents do not begin with the oldest"

    def _end(self, run: Run) -> None:
        self.running.remove(run)
        if run.died or run.raised:
            self.retried.update(run.composed.entries)
            alive = [entry for entry in run.composed.entries if entry not in self.ends]
            given_up = self.scheduler.retry(run.composed, is_runner_lost=run.died)
            if given_up:
                assert len(run.composed.entries) == 1, "given up without having stood alone"
            for entry in given_up:
                self._note(entry, "failed")
            self.waiting.update(entry for entry in alive if entry not in self.ends)
            return
        self.scheduler.finish(run.composed, device_s=run.end_s - run.composed.composed_s)
        for entry in run.composed.entries:
            if entry not in self.ends:
                self._note(entry, "done")

    def _check_books(self) -> None:
        statistics = self.scheduler.statistics(self.now_s)
        assert statistics.num_running_passes == len(self.running)
        out = {entry for run in self.running for entry in run.composed.entries if entry not in self.ends}
        for lane, shown in statistics.lanes.items():
            waiting = [entry for entry in self.waiting if entry.lane is lane]
            assert shown.num_waiting == len(waiting)
            assert shown.num_waiting_tokens == sum(entry.num_tokens for entry in waiting)
            assert self.scheduler.lane_load(lane) == LaneLoad(
                num_waiting=shown.num_waiting, num_waiting_tokens=shown.num_waiting_tokens
            )
            assert shown.num_running == sum(entry.lane is lane for entry in out)
            oldest_s = min((entry.arrival_s for entry in waiting), default=self.now_s)
            assert shown.oldest_wait_s == self.now_s - oldest_s
            ended = [self.ends[entry] for entry in self.ends if entry.lane is lane]
            assert shown.num_done == ended.count("done")
            assert shown.num_failed == ended.count("failed")
            assert shown.num_cancelled == ended.count("cancelled")
            assert shown.num_expired == ended.count("expired")
            assert shown.num_admitted == shown.num_waiting + shown.num_running + len(ended)


def _deadline_s(entry: Entry) -> float:
    return inf if entry.deadline_s is None else entry.deadline_s
