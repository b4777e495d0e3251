"""Decides which entries run next, how many at once, where, and which are given up. No clock, no asyncio.

Rule 1: every choice of order, size and place is made in this file; admission.py says who may wait.
Rule 2: nothing here waits or wakes anyone, and time is an argument; batcher.py waits.
Rule 3: whatever is weighed against something else is weighed in device seconds.

**Who goes first.** Queries, the most urgent first. What room they leave is filled up with documents, but
only to ``fill_s``: below the size at which a device saturates the filling is nearly free, above it the
query would wait for it. Without queries documents run in full passes, and the batch lane takes what they
leave. Every pass is bounded in time, so a query waits for the pass that is running and for its own, however
many documents are queued.

**Two lines lead to a device.** On the main line one pass runs and one is staged behind it, so that the
device never waits for us. What is staged holds no queries. They take the urgent line, which overtakes
whatever has not begun, and may break into a running pass of documents where the runner can do that. So a
staged pass costs a query nothing, and need not be revoked. An urgent pass is composed at the last moment:
the later that is, the more queries share it. And where nothing is staged, none is needed: queries wait for
the slot to become idle.

**What queries may waste.** A pass for a few queries costs what every pass costs, and documents could have
been in it. While nothing was wasted lately queries break in at once, in short passes; the more was wasted,
the longer they wait for each other, and the fuller their passes become. In the end they break in only where
documents have had the device for as long as a pass of queries may: so they never wait for all of a pass that
nobody could make shorter. A full pass of queries breaks in whatever was wasted: nobody has room in it.

**Who is never starved.** While a lane has work, every second of device time that goes to a pass earns it
its share of that second as credit, and what it gets of the pass is deducted. Credit is spent as room that
is kept for the lane in passes of queries. A lane whose credit pays for a pass of its own leads the next one,
and until then nothing urgent overtakes, nor breaks in sooner than it must: so no pass is interrupted without
end either. Credit exists only
while there is work: a lane that was served anyway never holds any, and nobody pays for a lane that is
empty. To earn first and be served afterwards (deficit round robin, Shreedhar and Varghese, SIGCOMM 1995, on
seconds for bytes) means that a few queries in a row never find documents in front of them.

**What becomes of a failed pass.** If the runner died, the pass may be innocent: it runs once more
whole. If it fails again, or if the model raised, it is halved until the culprit stands alone. These
groups run apart from everything else, and hold entries of one lane only. Passes that had not begun when
the runner died are not blamed. And while a runner restarts its slot does not count: the others do as if it
were not there.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import chain, count
from math import inf

from batching.admission import Admission, Asked
from batching.cost import CostModel, Shape
from batching.lanes import LaneQueue
from batching.limits import Limits
from batching.lines import SlotLines
from batching.room import TINY_S, Room, best_fit, in_order
from batching.statistics import LaneLoad, LaneStatistics, SchedulerStatistics
from batching.types import Entry, Lane, Pass, Slot
from batching.waste import WasteBudget

_MAX_OVERTAKINGS = 16
"""Passes that may take others past the first in line. Then nobody passes it until it has run."""
_SLACK = 64
"""Deadlines of finished entries that are kept beyond as many as there are living ones."""
_COMMIT_AHEAD_S = 0.002
"""An urgent pass is handed out so long before its turn: what a pass takes to reach a runner, with room."""
_FILL_WHEN_SPENT = 0.5
"""Passes of queries are filled up to their bound when so much of what they may waste is spent."""
_RESTART_S = 10.0
"""What a restart takes where nobody knows: a small model on a CPU. It is measured when there was one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patience:
    """How long the queries that wait now leave a pass of documents alone, on whichever slot it runs."""

    until_s: float
    """Until then they wait for others to share their pass."""
    may_break_in_early: bool
    """Then they break in, though the documents may not have had the device for long."""
    nobody_can_join: bool
    """Their pass is as full as it may be, or runs apart."""


@dataclass(slots=True)
class _Tally:
    """What has become of a lane's entries so far."""

    num_admitted: int = 0
    num_refused: int = 0
    num_done: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_expired: int = 0
    device_s: float = 0.0


class Scheduler:
    """Owns everything that waits, and knows what runs.

    The order of calls for one entry is ``admit``, then ``next_pass`` with it inside, then ``finish`` or
    ``retry`` for that pass; ``cancel`` and ``expire`` may come between any two.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        cost: CostModel,
        slots: Sequence[Slot] = (Slot(),),
        restart_s: float | None = None,
    ) -> None:
        """Begin with empty lanes, and with runners that are ready.

        Args:
            limits: Bounds of passes and queues.
            cost: What passes cost; it learns from each one.
            slots: What the runners can do.
            restart_s: How long a runner takes to be ready again, as far as that is known.
        """
        self._limits = limits
        self._cost = cost
        self._slots = tuple(SlotLines(can=can) for can in slots)
        self._lanes = {
            lane: LaneQueue(
                price_s=cost.predict_work_s, urgency=self._urgency_s if lane is Lane.QUERY else None
            )
            for lane in Lane
        }
        self._tallies = {lane: _Tally() for lane in Lane}
        self._credit_s = dict.fromkeys(limits.shares, 0.0)
        # With the part of each that a lane has.
        self._passes: dict[Pass, dict[Lane, float]] = {}
        # Without those that were cancelled or expired under way: nobody wants their results.
        self._running: set[Entry] = set()
        # A heap of (deadline, tie-break, entry); entries that have gone are dropped when met.
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._tie_break = count()
        self._expired: list[Entry] = []
        self._lingers = limits.max_wait_s > 0
        self._last_query_s = -inf
        self._waste = WasteBudget(share=limits.interruption_share, num_slots=len(self._slots))
        self._admission = Admission(
            limits,
            cost=cost,
            lanes=self._lanes,
            slots=self._slots,
            turn_cost_s=self._turn_cost_s,
            first_start_s=self._first_start_s,
            restart_s=_RESTART_S if restart_s is None else restart_s,
        )
        # What the next pass of a lane would cost, for as long as neither lane, prices nor limits change.
        self._turn_costs: dict[Lane, tuple[tuple[int, int], float]] = {}
        self._num_passes = 0
        self._num_failed_passes = 0
        self._num_urgent_passes = 0
        self._num_interruptions = 0
        self._wasted_s = 0.0

    # In and out.

    def admit(self, entries: Sequence[Entry], now_s: float, *, ticket: Hashable = None) -> None:
        """Let entries of one lane and one tenant wait: all of them, or none.

        Args:
            entries: What comes together.
            now_s: The present moment.
            ticket: What they are known by if they are refused and come back: room is kept for them.
                ``None``: by nothing.

        Raises:
            SubmissionTooLargeError: They are more than the lane may hold even when it is empty.
            QueueFullError: They are more than the lane may hold now; the error carries the time in
                which there is room for them, by the backlog and the speed of all slots that are ready.
            DeadlineUnmeetableError: Their deadline is earlier than they can be done.
        """
        if not entries:
            return
        lane = entries[0].lane
        assert all(entry.lane is lane for entry in entries), "a submission waits in one lane"
        assert all(entry.tenant == entries[0].tenant for entry in entries), "and is of one tenant"
        try:
            self._admission.check(entries, now_s, ticket=ticket)
        except Exception:
            self._tallies[lane].num_refused += len(entries)
            raise
        for entry in entries:
            self._lanes[lane].append(entry)
            if entry.deadline_s is not None:
                heappush(self._deadlines, (entry.deadline_s, next(self._tie_break), entry))
        self._tallies[lane].num_admitted += len(entries)
        if lane is Lane.QUERY:
            self._last_query_s = now_s
        self._sweep_deadlines()

    def check_room(
        self, lane: Lane, *, tenant: str, num_entries: int, now_s: float, ticket: Hashable = None
    ) -> None:
        """Refuse so many entries before it is known what they cost, if they will be refused in any case.

        A refusal keeps room for its ticket, as that of ``admit`` does.

        Raises:
            SubmissionTooLargeError: They are more than the lane may hold even when it is empty.
            QueueFullError: They are more than the lane may hold now, however little each of them costs.
        """
        asked = Asked(lane=lane, tenant=tenant, num_entries=num_entries, work=None, ticket=ticket)
        try:
            self._admission.check_room(asked, now_s)
        except Exception:
            self._tallies[lane].num_refused += num_entries
            raise

    def cancel(self, entry: Entry) -> None:
        """Give an entry up because nobody waits for it any more.

        A waiting one frees its place in the lane at once. A running one is computed to the end, since a
        pass cannot be taken apart, but is neither counted nor tried again. Anything else: no effect.
        """
        if self._withdraw(entry):
            self._tallies[entry.lane].num_cancelled += 1

    def expire(self, now_s: float) -> list[Entry]:
        """Give up the entries whose deadline has come, and return each of them once.

        Waiting ones will not run. Running ones are computed to the end for nobody.
        """
        self._withdraw_expired(now_s)
        expired, self._expired = self._expired, []
        return expired

    def stop_lingering(self) -> None:
        """From now on nothing waits for company: no more of it is to come."""
        self._lingers = False

    # Slots.

    def set_ready(self, slot: int, now_s: float, *, is_ready: bool) -> None:
        """Take note that the runner of a slot can be handed passes, or cannot until it has restarted.

        A slot that is not ready gets none and counts for nothing. How long it was so is expected of the next
        restart.
        """
        lines = self._slots[slot]
        if is_ready and lines.absent_since_s is not None:
            self._admission.observe_restart(now_s - lines.absent_since_s)
            lines.absent_since_s = None
        elif not is_ready and lines.absent_since_s is None:
            lines.absent_since_s = now_s
        self._waste.set_num_slots(self._num_ready, now_s)

    def retire(self, slot: int, now_s: float) -> None:
        """Take note that the runner of a slot will never be ready again."""
        self._slots[slot].absent_since_s = -inf
        self._waste.set_num_slots(self._num_ready, now_s)

    @property
    def _num_ready(self) -> int:
        return sum(lines.is_ready for lines in self._slots)

    # Passes.

    def asking_order(self) -> list[int]:
        """In which order slots are to ask for passes: idle ones first, so that a query goes there."""
        return sorted(range(len(self._slots)), key=lambda slot: self._slots[slot].num_out)

    def next_pass(self, now_s: float, slot: int = 0) -> Pass | None:
        """Take the next pass for a slot out of the lanes; ``None`` if it is to be handed nothing now.

        Ask again until there is nothing, for every slot, whenever something has come in or come back.
        Every pass that is returned must come back, to ``finish`` or to ``retry``.
        """
        self._withdraw_expired(now_s)
        lines = self._slots[slot]
        if not lines.is_ready:
            return None
        if not lines.num_out:
            return self._next_for_idle(slot, now_s)
        return self._next_urgent(slot, now_s) or self._next_staged(slot, now_s)

    def next_event_s(self, now_s: float) -> float | None:
        """When to ask again even though nothing has happened.

        At a deadline, at the end of a linger, at the last moment to hand out an urgent pass. That last one is
        told as if nothing flowed into the budget of waste meanwhile: it may be a little late. What has come
        by now is no event: ``next_pass`` was asked for it at this very moment.

        ``None``: only an arrival or the end of a pass changes anything.
        """
        if self._expired:
            return now_s
        while self._deadlines and not self._is_alive(self._deadlines[0][2]):
            heappop(self._deadlines)
        moments = [self._deadlines[0][0]] if self._deadlines else []
        # A linger that is over is no event: the pass is there for whichever slot asks next.
        if (linger_until_s := self._linger_until_s(now_s)) is not None and linger_until_s > now_s:
            moments.append(linger_until_s)
        if self._lanes[Lane.QUERY]:
            patience = self._patience(now_s)
            commits_s = (
                self._commit_s(lines, patience, now_s)
                for lines in self._slots
                if lines.is_ready and lines.can_take_urgent(may_interrupt=False)
            )
            break_ins_s = (
                self._break_in_s(lines, patience, now_s)
                for lines in self._slots
                if lines.is_ready and lines.is_interruptible() and lines.can_take_urgent(may_interrupt=True)
            )
            # Timers are as exact as clocks are.
            moments += [at_s for at_s in chain(commits_s, break_ins_s) if now_s + TINY_S < at_s < inf]
        return min(moments, default=None)

    def finish(self, done: Pass, now_s: float, *, device_s: float, failed: Collection[Entry] = ()) -> None:
        """Take note that a pass came back with results.

        Args:
            done: The pass.
            now_s: When it came back.
            device_s: What it cost, as measured; corrects the prediction that was charged for it.
            failed: Entries that got an error of their own instead of a result.
        """
        parts = self._take_back(done, now_s)
        self._num_passes += 1
        for entry in done.entries:
            if entry in self._running:
                self._running.remove(entry)
                tally = self._tallies[entry.lane]
                if entry in failed:
                    tally.num_failed += 1
                else:
                    tally.num_done += 1
        for lane, part in parts.items():
            self._tallies[lane].device_s += device_s * part
        self._admission.observe_pass(parts, device_s)
        self._credit(parts, device_s - done.predicted_s)
        self._cost.observe(done.shape, device_s)

    def retry(
        self, failed: Pass, now_s: float, *, is_runner_lost: bool, has_begun: bool = True
    ) -> tuple[Entry, ...]:
        """Let the entries of a pass that came back without results run again, as far as that makes sense.

        Entries that were cancelled or expired under way are left out. What was charged for the pass stays so:
        how much of the device's time it took is not known.

        Args:
            failed: The pass.
            now_s: When it came back.
            is_runner_lost: The runner died under it, by the pass's fault or not. False: the model
                raised, and would raise again.
            has_begun: The runner had come to the pass, or may have. False: the pass is innocent.

        Returns:
            Entries that are given up: a single one that raised, or that was alone when a runner died
            that was not the first.
        """
        is_innocent = is_runner_lost and not has_begun
        self._take_back(failed, now_s)
        self._num_failed_passes += 1
        living = [entry for entry in failed.entries if entry in self._running]
        self._running.difference_update(living)
        if is_runner_lost and not is_innocent:
            for entry in living:
                entry.num_attempts += 1
        # A group comes from one pass, so its entries have died together.
        is_first_death = is_runner_lost and all(entry.num_attempts == 1 for entry in living)
        is_whole = is_innocent or is_first_death
        if len(failed.entries) == 1 and not is_whole:
            for entry in living:
                self._tallies[entry.lane].num_failed += 1
            return tuple(living)
        for lane, queue in self._lanes.items():
            group = [entry for entry in living if entry.lane is lane]
            # A mixed pass falls into its lanes first, and one that lost members is smaller already.
            is_cut = len(group) < len(failed.entries)
            middle = len(group) if is_whole or is_cut else len(group) // 2
            for half in (group[middle:], group[:middle]):
                if half:
                    queue.push_group(half)
        return ()

    def shrink_passes(self, lost: Pass) -> int | None:
        """Compose no more passes as large as one that found no memory: half of it is tried next.

        Returns:
            The most tokens in a pass from now on; never less than its largest entry has, which would run
            alone. ``None``: that stays as it is. An entry that was alone says nothing of many small ones.
        """
        largest = max(entry.num_tokens for entry in lost.entries)
        max_tokens = max(lost.num_tokens // 2, largest)
        if len(lost.entries) == 1 or max_tokens >= self._limits.max_pass_tokens:
            return None
        self._limits = replace(self._limits, max_pass_tokens=max_tokens)
        self._admission.set_limits(self._limits)
        self._turn_costs.clear()
        return max_tokens

    # State, for people and for metrics.

    @property
    def limits(self) -> Limits:
        """Bounds of passes and queues as they are now."""
        return self._limits

    def lane_load(self, lane: Lane) -> LaneLoad:
        """How much waits in a lane, from its counters: cheap enough to be told with every answer."""
        queue = self._lanes[lane]
        return LaneLoad(
            num_waiting=len(queue),
            num_waiting_tokens=queue.num_tokens,
            waiting_s=self._admission.waiting_s(lane),
            max_waiting_tokens=self._admission.max_waiting_tokens(lane),
        )

    def statistics(self, now_s: float) -> SchedulerStatistics:
        """A snapshot of what waits, what runs, and what has become of the rest.

        It looks at everything that waits for a deadline and at everything that runs, so it is for scrapes.
        """
        num_running = dict.fromkeys(Lane, 0)
        for entry in self._running:
            num_running[entry.lane] += 1
        return SchedulerStatistics(
            lanes={lane: self._lane_statistics(lane, num_running[lane], now_s) for lane in Lane},
            num_running_passes=len(self._passes),
            num_staged_passes=sum(len(lines.staged) for lines in self._slots),
            num_passes=self._num_passes,
            num_failed_passes=self._num_failed_passes,
            num_urgent_passes=self._num_urgent_passes,
            num_interruptions=self._num_interruptions,
            wasted_s=self._wasted_s,
        )

    def __repr__(self) -> str:
        waiting = ", ".join(f"{lane}: {len(queue)} waiting" for lane, queue in self._lanes.items())
        return f"<Scheduler {waiting}, {len(self._passes)} running>"

    def _lane_statistics(self, lane: Lane, num_running: int, now_s: float) -> LaneStatistics:
        queue, tally = self._lanes[lane], self._tallies[lane]
        oldest_arrival_s = queue.oldest_arrival_s()
        return LaneStatistics(
            num_waiting=len(queue),
            num_waiting_tokens=queue.num_tokens,
            waiting_s=self._admission.waiting_s(lane),
            num_tenants=queue.num_tenants,
            num_promised=self._admission.num_promised(lane, now_s),
            oldest_wait_s=0.0 if oldest_arrival_s is None else now_s - oldest_arrival_s,
            num_running=num_running,
            num_admitted=tally.num_admitted,
            num_refused=tally.num_refused,
            num_done=tally.num_done,
            num_failed=tally.num_failed,
            num_cancelled=tally.num_cancelled,
            num_expired=tally.num_expired,
            device_s=tally.device_s,
        )

    # Who goes where.

    def _next_for_idle(self, slot: int, now_s: float) -> Pass | None:
        if (linger_until_s := self._linger_until_s(now_s)) is not None and now_s < linger_until_s:
            return None
        leading = self._leading_lane()
        if leading is None:
            return None
        entries = self._lanes[leading].take_group() or self._compose(leading, now_s)
        return self._hand_out(slot, entries, now_s)

    def _next_urgent(self, slot: int, now_s: float) -> Pass | None:
        lines = self._slots[slot]
        if not self._lanes[Lane.QUERY] or not lines.can_take_urgent(may_interrupt=True):
            return None
        patience = self._patience(now_s)
        breaks_in = self._may_break_in(lines, patience, now_s)
        if not lines.can_take_urgent(may_interrupt=breaks_in):
            return None
        if not breaks_in and self._owed_lane() is not None:
            return None
        if not breaks_in and now_s < self._commit_s(lines, patience, now_s) - TINY_S:
            return None
        start_s = self._start_s(lines, patience, now_s)
        for other in self._slots:
            can_take = other.is_ready and other.can_take_urgent(
                may_interrupt=self._may_break_in(other, patience, now_s)
            )
            if can_take and self._start_s(other, patience, now_s) < start_s - TINY_S:
                return None  # That slot has asked before, or will ask next.
        entries = self._lanes[Lane.QUERY].take_group() or self._compose(Lane.QUERY, now_s)
        return self._hand_out(slot, entries, now_s, is_urgent=True, breaks_in=breaks_in)

    def _commit_s(self, lines: SlotLines, patience: _Patience, now_s: float) -> float:
        """When an urgent pass has to be handed out that does not break in; queries join it until then.

        In time to begin before what is staged, even if the pass that runs ends as early as one in a hundred.
        Those that are patient let what is staged begin, for they can still break into it.
        """
        may_break_in = self._limits.interruption_share > 0 and lines.is_interruptible()
        if not may_break_in and patience.nobody_can_join:
            return now_s
        running = lines.running
        assert running is not None, "only a busy slot has something to overtake"
        last_s = lines.end_s - self._ahead_s(running)
        return max(last_s, patience.until_s) if may_break_in else last_s

    def _ahead_s(self, running: Pass) -> float:
        early_s = max(0.0, -self._cost.residual(0.01)) * running.predicted_s
        return early_s + _COMMIT_AHEAD_S

    def _first_start_s(self, now_s: float) -> float:
        """In what time an urgent pass can begin on one of the slots that are ready; 0 if none is."""
        patience = self._patience(now_s)
        starts_s = (self._start_s(lines, patience, now_s) for lines in self._slots if lines.is_ready)
        return min(starts_s, default=0.0)

    def _start_s(self, lines: SlotLines, patience: _Patience, now_s: float) -> float:
        """In what time an urgent pass can begin on a slot; what is overdue may be so for as long again."""
        rest_s = lines.rest_s(now_s)
        if lines.is_interruptible() and not lines.urgent:
            rest_s = min(rest_s, max(0.0, self._break_in_s(lines, patience, now_s) - now_s))
        return lines.overdue_s(now_s) + rest_s

    def _next_staged(self, slot: int, now_s: float) -> Pass | None:
        lines = self._slots[slot]
        if lines.num_out >= lines.can.depth or self._linger_until_s(now_s) is not None:
            return None
        if not all(other.num_out for other in self._slots if other.is_ready):
            return None  # It can run at once elsewhere.
        if self._lanes[Lane.QUERY] and self._owed_lane() is None:
            return None  # They are about to run here or elsewhere, and may leave room for documents.
        lanes = [lane for lane in Lane if lane is not Lane.QUERY]
        # Less than a pass gathers company until the device is free.
        if not self._is_pass_full(lanes, now_s):
            return None
        leading = self._leading_lane(lanes)
        assert leading is not None, "a full pass has somebody in it"
        entries = self._lanes[leading].take_group() or self._compose(leading, now_s, lanes)
        return self._hand_out(slot, entries, now_s)

    def _hand_out(
        self,
        slot: int,
        entries: tuple[Entry, ...],
        now_s: float,
        *,
        is_urgent: bool = False,
        breaks_in: bool = False,
    ) -> Pass:
        lines = self._slots[slot]
        composed = Pass(
            entries=entries,
            slot=slot,
            is_urgent=is_urgent,
            breaks_in=breaks_in,
            may_interrupt=is_urgent and (breaks_in or self._spares_nothing(lines, now_s)),
            composed_s=now_s,
            predicted_s=self._predict_s(entries),
        )
        if is_urgent:
            self._num_urgent_passes += 1
        if breaks_in:
            self._num_interruptions += 1
        others_wait = any(queue for lane, queue in self._lanes.items() if lane is not Lane.QUERY)
        if entries[0].lane is Lane.QUERY and others_wait:
            wasted_s = self._waste_s(composed, now_s)
            self._wasted_s += wasted_s
            # Only breaking in goes into debt: the others run in any case.
            self._waste.spend(wasted_s, now_s, may_owe=breaks_in)
        self._passes[composed] = self._parts(composed)
        self._running.update(entries)
        lines.add(composed, now_s)
        self._credit(self._passes[composed], composed.predicted_s)
        return composed

    def _take_back(self, out: Pass, now_s: float) -> dict[Lane, float]:
        self._slots[out.slot].remove(out, now_s)
        return self._passes.pop(out)

    def _leading_lane(self, lanes: Iterable[Lane] = tuple(Lane)) -> Lane | None:
        """The lane whose turn it is: the first one that is owed a pass, else the first one that waits."""
        waiting = [lane for lane in lanes if self._lanes[lane]]
        owed = self._owed_lane()
        return owed if owed in waiting else next(iter(waiting), None)

    # What queries waste.

    def _spares_nothing(self, lines: SlotLines, now_s: float) -> bool:
        """Whether there is no pass that queries may not break into: none has begun, or it ends just now.

        Then they may break into whatever they find. It can only be what was staged, and has begun before
        they came: a long one, perhaps, which they were to overtake.
        """
        if not lines.can.can_interrupt or self._limits.interruption_share == 0:
            return False
        running = lines.begun
        return running is None or lines.rest_s(now_s) <= self._ahead_s(running) + TINY_S

    def _may_break_in(self, lines: SlotLines, patience: _Patience, now_s: float) -> bool:
        return lines.is_interruptible() and now_s >= self._break_in_s(lines, patience, now_s) - TINY_S

    def _break_in_s(self, lines: SlotLines, patience: _Patience, now_s: float) -> float:
        """From when on queries may break into the pass that runs."""
        if self._limits.interruption_share == 0:
            return inf
        if patience.may_break_in_early:
            return max(now_s, patience.until_s)
        return max(lines.documents_since_s + self._pass_bound_s, patience.until_s)

    def _patience(self, now_s: float) -> _Patience:
        """How long queries leave a pass alone that they could break into.

        They break in when their patience is over, if nobody is owed a pass, and something may still be wasted
        or nobody else has room in theirs. Otherwise not before documents have had the device for as long as a
        pass with queries may: a long one must not make queries wait for all of it.
        """
        nobody_can_join = self._nobody_can_join(now_s)
        is_worth_it = nobody_can_join or self._waste.left_s(now_s) > TINY_S
        return _Patience(
            # Where the next pass is full many may wait, and each of them would be looked at.
            until_s=-inf if nobody_can_join else self._patient_until_s(now_s),
            may_break_in_early=is_worth_it and self._owed_lane() is None,
            nobody_can_join=nobody_can_join,
        )

    def _patient_until_s(self, now_s: float) -> float:
        """Until when queries wait for others to share their pass, where they could break in now.

        The more was wasted lately the longer, up to what a pass may take; but nobody misses a deadline for
        company that may not come.
        """
        queue = self._lanes[Lane.QUERY]
        oldest_s = queue.oldest_arrival_s()
        if oldest_s is None:
            return -inf
        deadline_s = min((entry.deadline_s for entry in queue if entry.deadline_s is not None), default=inf)
        patience_s = self._waste.spent_part(now_s) * self._pass_bound_s
        return min(oldest_s + patience_s, deadline_s - self._pass_bound_s)

    def _nobody_can_join(self, now_s: float) -> bool:
        """Whether the next pass of queries is as full as it may be, or runs apart."""
        return bool(self._lanes[Lane.QUERY].group) or self._is_pass_full([Lane.QUERY], now_s)

    def _waste_s(self, composed: Pass, now_s: float) -> float:
        """What a pass costs that would not be there without its queries, apart from their own work.

        That is what every pass costs, less what is saved because the documents in it need no other pass.
        """
        work_s = self._cost.predict_work_s(composed.shape)
        documents = Shape.of(entry.shape for entry in composed.entries if entry.lane is not Lane.QUERY)
        room_s = self._cost.room_s(self._document_pass_s(now_s))
        saved = min(1.0, self._cost.predict_work_s(documents) / room_s) if room_s > 0 else 0.0
        return (composed.predicted_s - work_s) * (1 - saved)

    # Composing a pass.

    def _compose(self, leading: Lane, now_s: float, lanes: Iterable[Lane] = tuple(Lane)) -> tuple[Entry, ...]:
        """Fill one pass: the leading lane first, then the others in their order."""
        chosen: list[Entry] = []
        if leading is Lane.QUERY:
            self._add_queries_and_fill(chosen, now_s)
            return tuple(chosen)
        # Where queries ride along, it is short enough for them: they wait now.
        room = Room(self._cost, self._limits, self._document_pass_s(now_s))
        for lane in sorted(lanes, key=lambda lane: lane is not leading):
            self._add(lane, chosen, room)
        return tuple(chosen)

    def _add_queries_and_fill(self, chosen: list[Entry], now_s: float) -> None:
        """Queries, as much of the others as is owed to them or costs little, and queries again."""
        room = Room(self._cost, self._limits, self._limits.max_pass_s)
        whole_s = room.work_s
        reserves_s = {lane: self._reserve_s(lane) for lane in Lane}
        self._add(Lane.QUERY, chosen, room, keep_s=sum(reserves_s.values()))
        fill_s = self._fill_work_s(now_s)
        for lane in (Lane.DOCUMENT, Lane.BATCH):
            # Queries may have left all of the room, or an entry larger than a pass less than none.
            used_s = whole_s - room.work_s
            allowed_s = max(reserves_s[lane], fill_s - used_s)
            # To find nobody who fits into no room is to look at many.
            if allowed_s > 0:
                self._add(lane, chosen, room, keep_s=max(0.0, room.work_s - allowed_s))
        self._add(Lane.QUERY, chosen, room)

    def _fill_work_s(self, now_s: float) -> float:
        """How much work a pass with queries may hold in all before documents are left out of it."""
        if self._limits.fill_s == 0:
            return 0.0
        # The fuller passes are, the less is wasted; and the longer queries take.
        is_short = self._waste.spent_part(now_s) > _FILL_WHEN_SPENT
        fill_s = self._pass_bound_s if is_short else self._limits.fill_s
        return max(fill_s, self._cost.floor_s) - self._cost.fixed_s

    def _reserve_s(self, lane: Lane) -> float:
        """What a pass of queries keeps free for a lane: what is owed to it, up to its share."""
        if not self._lanes[lane] or self._lanes[lane].group:
            return 0.0
        share = self._limits.shares.get(lane, 0.0)
        return min(self._credit_s.get(lane, 0.0), share * self._pass_bound_s)

    def _add(self, lane: Lane, chosen: list[Entry], room: Room, *, keep_s: float = 0.0) -> None:
        picked = self._pick(lane, room, keep_s=keep_s)
        self._lanes[lane].take(picked)
        chosen += picked

    def _pick(self, lane: Lane, room: Room, *, keep_s: float = 0.0) -> list[Entry]:
        """Choose who of a lane goes into the room, but for what is kept free of it. Takes nobody."""
        queue = self._lanes[lane]
        if queue.group and not room.is_empty:
            return []  # The group is first in line and runs apart; to pass it by would starve it.
        first = next(iter(queue), None)
        if first is not None and room.is_empty and not room.fits(first, keep_s=keep_s):
            room.take(first)  # It will never fit better than alone.
            return [first]
        if lane is Lane.QUERY or queue.num_overtakings >= _MAX_OVERTAKINGS:
            return in_order(queue, room, keep_s)
        return best_fit(queue, room, keep_s)

    @property
    def _pass_bound_s(self) -> float:
        """How long a pass with queries may be: what was asked for, if the device can keep it."""
        return max(self._limits.max_pass_s, self._cost.least_bound_s)

    def _document_pass_s(self, now_s: float) -> float:
        """How long a pass without queries may be now."""
        is_quiet = not self._lanes[Lane.QUERY] and now_s - self._last_query_s >= self._limits.quiet_after_s
        return self._limits.max_document_pass_s if is_quiet else self._limits.max_pass_s

    def _is_pass_full(self, lanes: Iterable[Lane], now_s: float) -> bool:
        """Whether what waits in these lanes is at least a pass, or must run apart anyway."""
        queues = [self._lanes[lane] for lane in lanes]
        if any(queue.group for queue in queues):
            return True
        waiting = Shape.of(queue.shape for queue in queues)
        return (
            self._cost.predict_work_s(waiting) >= self._cost.room_s(self._document_pass_s(now_s)) - TINY_S
            or waiting.num_tokens >= self._limits.max_pass_tokens
            or sum(map(len, queues)) >= self._limits.max_pass_entries
        ) and waiting.num_tokens > 0

    def _linger_until_s(self, now_s: float) -> float | None:
        """Until when a pass waits for company. ``None``: there is no pass, or it has no reason to wait."""
        if not self._lingers or self._lanes[Lane.QUERY] or self._is_pass_full(Lane, now_s):
            return None
        arrivals_s = [
            arrival_s for queue in self._lanes.values() if (arrival_s := queue.oldest_arrival_s()) is not None
        ]
        return min(arrivals_s) + self._limits.max_wait_s if arrivals_s else None

    # Service.

    def _owed_lane(self) -> Lane | None:
        """The first lane whose credit pays for a pass of its own."""
        for lane in Lane:
            credit_s = self._credit_s.get(lane, 0.0)
            if credit_s > 0 and credit_s >= self._turn_cost_s(lane):
                return lane
        return None

    def _turn_cost_s(self, lane: Lane) -> float:
        """What the lane's next pass of its own would cost, or the one that it waits to see the end of."""
        queue = self._lanes[lane]
        if not queue:
            return min((out.predicted_s for out in self._interruptible_with(lane)), default=inf)
        # To pick a pass is to look at many entries, and this is asked several times a query.
        version = (queue.version, self._cost.version)
        known = self._turn_costs.get(lane)
        if known is None or known[0] != version:
            room = Room(self._cost, self._limits, self._limits.max_pass_s)
            known = version, self._predict_s(queue.group or self._pick(lane, room))
            self._turn_costs[lane] = known
        return known[1]

    def _interruptible_with(self, lane: Lane) -> Iterator[Pass]:
        """Passes that queries may hold up, and that a lane has a part in."""
        for lines in self._slots:
            if lines.can.can_interrupt:
                yield from (out for out in lines.main if lane in self._passes[out])

    def _credit(self, parts: Mapping[Lane, float], seconds: float) -> None:
        """Give each lane that has work its share of the seconds of a pass, and deduct its part of them."""
        for lane, share in self._limits.shares.items():
            earned_s = self._credit_s[lane] + seconds * (share - parts.get(lane, 0.0))
            has_work = bool(self._lanes[lane]) or any(self._interruptible_with(lane))
            self._credit_s[lane] = max(0.0, earned_s) if has_work else 0.0

    def _parts(self, of: Pass) -> dict[Lane, float]:
        """Which part of a pass each lane got: of its work, or of its tokens if that is free."""
        work_s = dict.fromkeys(of.num_tokens_by_lane(), 0.0)
        for entry in of.entries:
            work_s[entry.lane] += self._cost.predict_work_s(entry.shape)
        if (whole_s := sum(work_s.values())) > 0:
            return {lane: part_s / whole_s for lane, part_s in work_s.items()}
        return {lane: num_tokens / of.num_tokens for lane, num_tokens in of.num_tokens_by_lane().items()}

    def _predict_s(self, entries: Iterable[Entry]) -> float:
        return self._cost.predict_s(Shape.of(entry.shape for entry in entries))

    def _urgency_s(self, query: Entry) -> float:
        # A caller's own deadline only counts if it is earlier: the OpenAI SDK sends its time-out of ten
        # minutes with every call, and would be overtaken by everybody else for as long.
        wanted_s = query.arrival_s + self._limits.query_slo_s
        return wanted_s if query.deadline_s is None else min(query.deadline_s, wanted_s)

    # Giving up.

    def _withdraw_expired(self, now_s: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_s:
            entry = heappop(self._deadlines)[2]
            if self._withdraw(entry):
                self._tallies[entry.lane].num_expired += 1
                self._expired.append(entry)

    def _withdraw(self, entry: Entry) -> bool:
        """Forget an entry wherever it is; false if it had gone before."""
        if self._lanes[entry.lane].discard(entry):
            return True
        if entry in self._running:
            self._running.remove(entry)
            return True
        return False

    def _is_alive(self, entry: Entry) -> bool:
        return entry in self._lanes[entry.lane] or entry in self._running

    def _sweep_deadlines(self) -> None:
        """Keep the heap as large as what lives, or long deadlines would hold finished entries for ever."""
        num_alive = sum(len(queue) for queue in self._lanes.values()) + len(self._running)
        if len(self._deadlines) > 2 * num_alive + _SLACK:
            self._deadlines = [item for item in self._deadlines if self._is_alive(item[2])]
            heapify(self._deadlines)
