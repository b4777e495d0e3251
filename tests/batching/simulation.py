"""A scheduler on a virtual clock, with devices that only take time; its laws are checked at every step.

Law by law: an entry ends once, and in one way; an expired or cancelled entry is never in a pass; a pass
keeps its budgets; entries of a lane and a tenant are taken in their order; a lane takes in what its bound and
its tenants' parts allow, and nothing else; a free slot and waiting work never stand beside each other; a full
pass of documents is staged behind each one that runs, whatever other slots are absent; what is staged holds
no queries; a runner is handed no more than it can take; the counts are those of an independent book.

Devices do what a runner promises (``Runner``): they begin passes in the order in which they came, urgent ones
first, and may let an urgent one in between two blocks of a pass of documents. When a pass ends the device goes
on with what it has, and only then the scheduler hears of it.
"""

import random
from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf

from batching import (
    CostModel,
    DeadlineUnmeetableError,
    Entry,
    Lane,
    LaneLoad,
    Limits,
    Pass,
    QueueFullError,
    Scheduler,
    Slot,
    SubmissionTooLargeError,
)
from tests.batching.fakes import known_cost

SIMPLE, STAGING, YIELDING = Slot(), Slot(depth=2), Slot(depth=2, can_interrupt=True)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A submission, and what befalls it."""

    at_s: float
    lane: Lane
    sizes: tuple[int, ...]
    tenant: str = ""
    timeout_s: float | None = None
    cancelled_after_s: float | None = None
    raising: frozenset[int] = frozenset()
    """Indexes of entries that make any pass raise."""
    killing: frozenset[int] = frozenset()
    """Indexes of entries that kill any runner."""
    retries: int = 0
    """How often it comes back when it is refused, after the wait that it was told."""
    late_s: float = 0.0
    """How much after it."""
    ticket: int | str | None = None
    """What it is known by when it comes back."""


@dataclass(eq=False)
class Run:
    """One pass, as it went."""

    composed: Pass
    whole_s: float
    """Device seconds that it takes."""
    work_s: float
    """Those of them that its entries add."""
    num_blocks: int
    done_s: float = 0.0
    """Device seconds that it has had."""
    begin_s: float = inf
    end_s: float = inf
    died: bool = False
    raised: bool = False
    interrupted: "Interrupted | None" = None
    """What it broke into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupted:
    """A pass of documents at the moment when queries broke in."""

    had_s: float
    """Device seconds that documents have had, this pass and those before it, since the last pass with queries."""
    left_s: float
    """Device seconds that it still needs."""


class Device:
    """Runs what it was handed, one block at a time."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        # The last one has the device; the others were interrupted by it.
        self.stack: list[Run] = []
        self.staged: deque[Run] = deque()
        self.urgent: deque[Run] = deque()
        self.documents_s = 0.0
        """How long no query has had it."""

    def out(self) -> list[Run]:
        return [*self.stack, *self.urgent, *self.staged]

    def hand(self, run: Run) -> None:
        (self.urgent if run.composed.is_urgent else self.staged).append(run)

    def begin_block(self, now_s: float) -> tuple[Run, float] | None:
        """What has the device from now on, and for how long; ``None`` if there is nothing to do."""
        if self.stack:
            below = self.stack[-1]
            if not below.composed.is_urgent and self.urgent and self.urgent[0].composed.may_interrupt:
                self.stack.append(self.urgent.popleft())
                self.stack[-1].interrupted = Interrupted(
                    had_s=self.documents_s, left_s=below.whole_s - below.done_s
                )
        elif self.urgent:
            self.stack.append(self.urgent.popleft())
        elif self.staged:
            self.stack.append(self.staged.popleft())
        else:
            return None
        run = self.stack[-1]
        run.begin_s = min(run.begin_s, now_s)
        return run, min(run.whole_s / run.num_blocks, run.whole_s - run.done_s)


@dataclass(repr=False)
class Simulation:
    """Plays arrivals to the end. Read the records afterwards."""

    limits: Limits
    slots: Sequence[Slot] = (SIMPLE,)
    cost: CostModel = field(default_factory=known_cost)
    """What the scheduler knows. It learns; devices obey what it knew in the beginning, but for the noise."""
    noise: float = 0.0
    """A pass takes up to such a part longer or shorter than it should."""
    num_blocks: int = 8
    """Blocks of a pass that can be interrupted."""
    dying_passes: Collection[int] = ()
    """Numbers of passes whose runner dies for no fault of theirs."""
    restart_s: float = 0.05
    """How long a runner is away that died; the scheduler knows it."""
    checks_all: bool = True
    """Also hold the whole backlog against every step: quadratic, so not for long backlogs."""

    now_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    ends: dict[Entry, str] = field(default_factory=dict)
    ended_s: dict[Entry, float] = field(default_factory=dict)
    run_of: dict[Entry, Run] = field(default_factory=dict)
    passes_ahead: dict[Entry, float] = field(default_factory=dict)
    """For each query, the queries before it when it came, in passes."""
    received_s: Counter[Lane] = field(default_factory=Counter)
    """Device seconds that each lane has had so far, by its part of the work that has run."""
    refused: list[Arrival] = field(default_factory=list)
    refusals: list[tuple[Arrival, float, float]] = field(default_factory=list)
    """What was refused because a lane was full, when, and the wait that it was told."""

    def __post_init__(self) -> None:
        self._truth = _copy_of(self.cost)
        self.scheduler = Scheduler(self.limits, cost=self.cost, slots=self.slots, restart_s=self.restart_s)
        self.devices = [Device(slot) for slot in self.slots]
        self.waiting: dict[Entry, None] = {}
        self.culprits: dict[Entry, str] = {}
        self.retried: set[Entry] = set()
        self._absent: set[int] = set()
        self._events: list[tuple[float, int, object]] = []
        self._order = count()
        self._random = random.Random(0)

    def __repr__(self) -> str:
        return f"<Simulation at {self.now_s:.3f} s after {len(self.runs)} passes: {self.scheduler!r}>"

    @property
    def running(self) -> list[Run]:
        return [run for device in self.devices for run in device.out()]

    def play(self, arrivals: Collection[Arrival], *, until_s: float = inf) -> None:
        for arrival in arrivals:
            self._at(arrival.at_s, arrival)
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, event = heappop(self._events)
            match event:
                case Arrival():
                    self._arrive(event)
                case (int() as slot, Run() as run, float() as block_s):
                    self._end_block(slot, run, block_s)
                case int():
                    self._absent.discard(event)
                    self.scheduler.set_ready(event, self.now_s, is_ready=True)
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

    # Coming and leaving.

    def _arrive(self, arrival: Arrival) -> None:
        deadline_s = None if arrival.timeout_s is None else self.now_s + arrival.timeout_s
        entries = tuple(
            Entry(
                payload=None,
                lane=arrival.lane,
                num_tokens=size,
                arrival_s=self.now_s,
                deadline_s=deadline_s,
                tenant=arrival.tenant,
            )
            for size in arrival.sizes
        )
        fits = self._has_room(entries)
        try:
            if arrival.ticket is not None:
                # As the engine does: what will be refused in any case is not prepared first. Nobody knows then
                # how much it is, so only a promise can say when there is room for it.
                self.scheduler.check_room(
                    arrival.lane,
                    tenant=arrival.tenant,
                    num_entries=len(entries),
                    now_s=self.now_s,
                    ticket=arrival.ticket,
                )
            self.scheduler.admit(entries, self.now_s, ticket=arrival.ticket)
        except (SubmissionTooLargeError, QueueFullError) as refusal:
            assert fits is not True, "refused although there was room"
            self._refuse(arrival, refusal)
            return
        except DeadlineUnmeetableError:
            assert self.running or self.waiting, "an idle device must try"
            self.refused.append(arrival)
            return
        assert fits is not False, "admitted beyond the bound"
        for entry in entries:
            if entry.lane is Lane.QUERY and self.checks_all:
                self.passes_ahead[entry] = self._count_passes_ahead(entry)
            self.waiting[entry] = None
        self.culprits |= {entries[i]: "raises" for i in arrival.raising if i < len(entries)}
        self.culprits |= {entries[i]: "kills" for i in arrival.killing if i < len(entries)}
        if arrival.cancelled_after_s is not None:
            self._at(self.now_s + arrival.cancelled_after_s, entries)

    def _refuse(self, arrival: Arrival, refusal: SubmissionTooLargeError | QueueFullError) -> None:
        if isinstance(refusal, QueueFullError):
            assert refusal.retry_after_s > 0
            self.refusals.append((arrival, self.now_s, refusal.retry_after_s))
            if arrival.retries:
                at_s = self.now_s + refusal.retry_after_s + arrival.late_s
                again = Arrival(**(vars(arrival) | {"at_s": at_s, "retries": arrival.retries - 1}))
                self._at(at_s, again)
                return
        self.refused.append(arrival)

    def _has_room(self, entries: Sequence[Entry]) -> bool | None:
        """Whether the lane may hold these, too; ``None`` where nobody counts."""
        if not self.checks_all:
            return None
        lane, tenant = entries[0].lane, entries[0].tenant
        waiting = [entry for entry in self.waiting if entry.lane is lane]
        max_entries = self.limits.max_waiting_entries[lane]
        max_s = self.limits.max_waiting_s[lane] * max(1, len(self.slots) - len(self._absent))
        if len(entries) > max_entries:
            return False
        if not waiting:
            return True
        # What is tried again is nobody's any more.
        tenants = {entry.tenant for entry in waiting if entry not in self.retried}
        own = [entry for entry in waiting if entry.tenant == tenant and entry not in self.retried]
        num_tenants = len(tenants | {tenant})
        # Whoever holds no more than its part may wait beyond the bound; so may one request of anybody's.
        is_small = not own or len(own) + len(entries) <= max_entries / num_tenants
        is_short = not own or self._backlog_s([*own, *entries]) <= max_s / num_tenants + 1e-9
        return (
            len(waiting) + len(entries) <= max_entries + is_small * (max_entries // 2)
            and self._backlog_s([*waiting, *entries]) <= max_s * (1 + is_short / 2) + 1e-9
        )

    def _backlog_s(self, work: Collection[Entry]) -> float:
        whole_s = sum(self.cost.predict_work_s(entry.shape) for entry in work)
        num_passes = max(
            min(ceil(whole_s / self.cost.room_s(self.limits.max_pass_s) - 1e-9), len(work)),
            ceil(sum(entry.num_tokens for entry in work) / self.limits.max_pass_tokens),
            ceil(len(work) / self.limits.max_pass_entries),
        )
        return whole_s + num_passes * self.cost.fixed_s

    def _count_passes_ahead(self, query: Entry) -> float:
        """Queries that are out or wait before this one, over how many of its size fit into a pass.

        What is kept free for others is not room for queries, and a device that was slower than predicted
        makes passes smaller.
        """
        ahead = [entry for run in self.running for entry in run.composed.entries if entry.lane is Lane.QUERY]
        ahead += [entry for entry in self.waiting if entry.lane is Lane.QUERY]
        room_s = self._truth.room_s(self.limits.max_pass_s / (1 + self.noise))
        room_s -= sum(self.limits.shares.values()) * self.limits.max_pass_s
        capacity = int(room_s / self._truth.predict_work_s(query.shape) + 1e-9)
        return len(ahead) / max(1, min(capacity, self.limits.max_pass_entries))

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
        self.waiting.pop(entry, None)

    # Passes.

    def _start_passes(self) -> None:
        is_new = True
        while is_new:
            is_new = False
            for slot in self.scheduler.asking_order():
                while slot not in self._absent:
                    composed = self.scheduler.next_pass(self.now_s, slot)
                    if composed is None:
                        break
                    is_new = True
                    self._start(composed, slot)
        for slot, device in enumerate(self.devices):
            is_idle = slot not in self._absent and not device.out()
            if is_idle and self.limits.max_wait_s == 0:
                assert not self.waiting, "a free slot beside waiting work"
        if self.checks_all and self.limits.max_wait_s == 0:
            self._check_staging()

    def _check_staging(self) -> None:
        """What would fill a pass is staged behind each pass that runs, whatever slots are absent."""
        if any(entry.lane is Lane.QUERY for entry in self.waiting):
            return
        work_s = sum(self.cost.predict_work_s(entry.shape) for entry in self.waiting)
        if work_s < self.cost.room_s(self.limits.max_document_pass_s):
            return
        for slot, device in enumerate(self.devices):
            if slot not in self._absent:
                assert len(device.out()) >= device.slot.depth, "a full pass waits, and nothing is staged"

    def _start(self, composed: Pass, slot: int) -> None:
        self._check_pass(composed, slot)
        device = self.devices[slot]
        for entry in composed.entries:
            del self.waiting[entry]
        whole_s = self._truth.predict_s(composed.shape) * (1 + self._random.uniform(-1, 1) * self.noise)
        can_be_interrupted = device.slot.can_interrupt and not composed.has_queries
        run = Run(
            composed,
            whole_s,
            self._truth.predict_work_s(composed.shape),
            self.num_blocks if can_be_interrupted else 1,
        )
        fates = {self.culprits.get(entry) for entry in composed.entries}
        run.died = len(self.runs) in self.dying_passes or "kills" in fates
        run.raised = "raises" in fates
        self.runs.append(run)
        self.run_of |= dict.fromkeys(composed.entries, run)
        is_idle = not device.out()
        device.hand(run)
        if is_idle:
            self._go_on(slot)

    def _go_on(self, slot: int) -> None:
        if (block := self.devices[slot].begin_block(self.now_s)) is not None:
            run, block_s = block
            self._at(self.now_s + block_s, (slot, run, block_s))

    def _end_block(self, slot: int, run: Run, block_s: float) -> None:
        run.done_s += block_s
        device = self.devices[slot]
        device.documents_s = 0.0 if run.composed.has_queries else device.documents_s + block_s
        for entry in run.composed.entries:
            part = self._truth.predict_work_s(entry.shape) / run.work_s
            self.received_s[entry.lane] += block_s * part
        if run.done_s < run.whole_s - 1e-12:
            self._go_on(slot)
            return
        run.end_s = self.now_s
        if run.died:
            self._lose(slot)
            return
        assert device.stack.pop() is run
        self._go_on(slot)
        if run.raised:
            self._try_again(run, is_runner_lost=False)
            return
        self.scheduler.finish(run.composed, self.now_s, device_s=run.done_s)
        for entry in run.composed.entries:
            if entry not in self.ends:
                self._note(entry, "done")

    def _lose(self, slot: int) -> None:
        lost = self.devices[slot].out()
        self.devices[slot] = Device(self.devices[slot].slot)
        self._absent.add(slot)
        self.scheduler.set_ready(slot, self.now_s, is_ready=False)
        self._at(self.now_s + self.restart_s, slot)
        self._random.shuffle(lost)
        for run in lost:
            self._try_again(run, is_runner_lost=True)

    def _try_again(self, run: Run, *, is_runner_lost: bool) -> None:
        self.retried.update(run.composed.entries)
        alive = [entry for entry in run.composed.entries if entry not in self.ends]
        given_up = self.scheduler.retry(
            run.composed, self.now_s, is_runner_lost=is_runner_lost, has_begun=run.begin_s < inf
        )
        if given_up:
            assert len(run.composed.entries) == 1, "given up without having stood alone"
            assert run.begin_s < inf, "given up for a death before it had begun"
        for entry in given_up:
            self._note(entry, "failed")
        self.waiting |= dict.fromkeys(entry for entry in alive if entry not in self.ends)

    # Laws.

    def _check_pass(self, composed: Pass, slot: int) -> None:
        entries, limits, device = composed.entries, self.limits, self.devices[slot]
        assert composed.slot == slot
        assert entries
        assert len(set(entries)) == len(entries), "an entry twice in one pass"
        assert self.waiting.keys() >= set(entries), "runs what does not wait"
        assert len(entries) <= limits.max_pass_entries
        assert composed.num_tokens <= limits.max_pass_tokens or len(entries) == 1
        longest_s = limits.max_pass_s if composed.has_queries else limits.max_document_pass_s
        is_retry = any(entry in self.retried for entry in entries)
        at_most_s = max(longest_s, 2 * self.cost.fixed_s) + 1e-6
        assert composed.predicted_s <= at_most_s or len(entries) == 1 or is_retry, "too long"
        out = [run.composed for run in device.out()]
        assert len(out) < (3 if device.slot.depth == 2 else 1), "more than the runner can take"
        assert sum(not other.is_urgent for other in out) < device.slot.depth or composed.is_urgent
        if composed.is_urgent:
            assert entries[0].lane is Lane.QUERY
            assert sum(other.is_urgent for other in out) < 2
            waiting_urgent = [run for run in device.urgent if not run.composed.may_interrupt]
            assert not waiting_urgent, "two urgent passes wait"
        elif out:
            assert not composed.has_queries, "queries were staged"
        assert device.slot.can_interrupt or not composed.may_interrupt
        if self.checks_all:
            self._check_order(composed)

    def _check_order(self, composed: Pass) -> None:
        entries, limits = composed.entries, self.limits
        is_retry = any(entry in self.retried for entry in entries)
        if is_retry:
            assert self.retried.issuperset(entries), "what failed before was mixed with others"
            assert len({entry.lane for entry in entries}) == 1
            return
        for tenant in {entry.tenant for entry in entries}:
            queries = [entry for entry in entries if entry.lane is Lane.QUERY and entry.tenant == tenant]
            keys = [(_urgency_s(query, limits), query.arrival_s) for query in queries]
            assert keys == sorted(keys), "queries out of order"
            others = [
                (_urgency_s(other, limits), other.arrival_s)
                for other in self.waiting
                if other.lane is Lane.QUERY and other.tenant == tenant
                if other not in entries and other not in self.retried
            ]
            assert not queries or all(key >= keys[-1] for key in others), "a query was overtaken"
        if entries[0].lane is Lane.DOCUMENT:
            oldest_s = min(
                other.arrival_s
                for other in self.waiting
                if other.lane is Lane.DOCUMENT and other.tenant == entries[0].tenant
                if other not in self.retried
            )
            assert entries[0].arrival_s == oldest_s, "documents do not begin with the oldest"

    def _check_books(self) -> None:
        statistics = self.scheduler.statistics(self.now_s)
        assert statistics.num_running_passes == len(self.running)
        assert statistics.num_staged_passes == sum(len(device.staged) for device in self.devices)
        out = {entry for run in self.running for entry in run.composed.entries if entry not in self.ends}
        for lane, shown in statistics.lanes.items():
            waiting = [entry for entry in self.waiting if entry.lane is lane]
            assert shown.num_waiting == len(waiting)
            assert shown.num_waiting_tokens == sum(entry.num_tokens for entry in waiting)
            assert (shown.waiting_s > 0) == bool(waiting)
            load = self.scheduler.lane_load(lane)
            assert load == LaneLoad(
                num_waiting=shown.num_waiting,
                num_waiting_tokens=shown.num_waiting_tokens,
                waiting_s=shown.waiting_s,
                max_waiting_tokens=load.max_waiting_tokens,
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


def query_wait_bound_s(
    simulation: Simulation, *, passes_ahead: float, longest_document_s: float = 0.0
) -> float:
    """Longest time from a query's arrival to the beginning of its pass, on slots that are all alike.

    It waits for what has the device, or for a block of it, and for a pass for each passful of queries that
    came before it; each of those breaks in anew. With the budget for breaking in spent, the pass that runs
    has first the device for as long as one with queries may. Turns of the other lanes are paid for by their
    shares, and each may be one pass in advance. More slots make none of it longer.

    Args:
        simulation: Whose limits, slots and noise count.
        passes_ahead: Queries before it, over how many fit into a pass.
        longest_document_s: What the longest document takes, if that is more than a pass may.
    """
    limits, slot, noise = simulation.limits, simulation.slots[0], simulation.noise
    # Passes are as long as predicted when the device was thought to be faster, and take longer than that.
    # Both the line and the factor on it may have been learned from the fastest ones.
    error = (1 + noise) / (1 - noise) ** 2
    pass_s = limits.max_pass_s * error
    committed_s = max(limits.max_document_pass_s, longest_document_s) * error
    num_passes = ceil(passes_ahead - 1e-9)
    if slot.can_interrupt and limits.interruption_share:
        # All of the time is more than queries can waste; any less may be spent.
        is_never_spent = limits.interruption_share > 0.9
        held_s = committed_s / simulation.num_blocks + (0.0 if is_never_spent else limits.max_pass_s)
        wait_s = num_passes * pass_s + (num_passes + 1) * held_s
    else:
        wait_s = committed_s + num_passes * pass_s
    shares = [share for share in limits.shares.values() if share]
    return (wait_s + len(shares) * committed_s) / (1 - sum(shares))


def _copy_of(cost: CostModel) -> CostModel:
    copied = CostModel()
    copied.__dict__.update(cost.__dict__)
    return copied


def _urgency_s(entry: Entry, limits: Limits) -> float:
    wanted_s = entry.arrival_s + limits.query_slo_s
    return wanted_s if entry.deadline_s is None else min(entry.deadline_s, wanted_s)
