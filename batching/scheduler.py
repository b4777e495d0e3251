"""Decides which entries run next, how many at once, and which are given up. No clock, no asyncio.

Rule 1: every choice of order and size is made in this file.
Rule 2: nothing here waits or wakes anyone, and time is an argument; batcher.py waits.

**Who goes first.** Queries, the most urgent deadline first. What room they leave is filled up with
documents, but only to ``fill_tokens``: below the size at which a device saturates the filling is nearly
free, above it the query would wait for it. Without queries documents run in full passes, and the batch
lane takes what they leave. So a query waits for the pass that is running and for its own, however many
documents are queued.

**Who is never starved.** While a lane waits, every second of device time that goes to a pass earns it
its share of that second as credit, and what it gets of the pass is deducted. A lane whose credit pays
for a pass of its own leads the next one. Credit exists only while there is work waiting: a lane that
was served anyway never holds any, and nobody pays for a lane that is empty. To earn first and be
served afterwards (deficit round robin, Shreedhar and Varghese, SIGCOMM 1995, on seconds for bytes)
means that a few queries in a row never find documents in front of them.

**What becomes of a failed pass.** If the runner died, the pass may be innocent: it runs once more
whole. If it fails again, or if the model raised, it is halved until the culprit stands alone. These
groups run apart from everything else, and hold entries of one lane only.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count, islice

from batching.cost import CostModel, Shape
from batching.errors import QueueFullError, SubmissionTooLargeError
from batching.lanes import LaneQueue
from batching.limits import Limits
from batching.statistics import LaneLoad, LaneStatistics, SchedulerStatistics
from batching.types import Entry, Lane, Pass

_LOOK_PAST = 64
"""Entries looked at behind the first one that does not fit. Bounds the work of composing a pass."""
_MAX_OVERTAKINGS = 16
"""Passes that may take others past the first in line. Then nobody passes it until it has run."""
_SLACK = 64
"""Deadlines of finished entries that are kept beyond as many as there are living ones."""


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

    def __init__(self, limits: Limits, *, cost: CostModel, num_slots: int = 1) -> None:
        self._limits = limits
        self._cost = cost
        self._num_slots = num_slots
        self._lanes = {lane: LaneQueue(is_by_deadline=lane is Lane.QUERY) for lane in Lane}
        self._tallies = {lane: _Tally() for lane in Lane}
        self._credit_s = dict.fromkeys(limits.shares, 0.0)
        self._passes: set[Pass] = set()
        # Without those that were cancelled or expired under way: nobody wants their results.
        self._running: set[Entry] = set()
        # A heap of (deadline, tie-break, entry); entries that have gone are dropped when met.
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._tie_break = count()
        self._expired: list[Entry] = []
        self._lingers = limits.max_wait_s > 0
        self._num_passes = 0
        self._num_failed_passes = 0

    # In and out.

    def admit(self, entries: Sequence[Entry], now_s: float) -> None:
        """Let entries of one lane wait: all of them, or none.

        Raises:
            SubmissionTooLargeError: They are more than the lane may hold even when it is empty.
            QueueFullError: They are more than the lane may hold now; the error carries the time in
                which there is room for them, by the backlog and the speed of all slots.
        """
        if not entries:
            return
        lane = entries[0].lane
        assert all(entry.lane is lane for entry in entries), "a submission waits in one lane"
        self._refuse_overflow(lane, len(entries), sum(entry.num_tokens for entry in entries), now_s)
        for entry in entries:
            self._lanes[lane].append(entry)
            if entry.deadline_s is not None:
                heappush(self._deadlines, (entry.deadline_s, next(self._tie_break), entry))
        self._tallies[lane].num_admitted += len(entries)
        self._sweep_deadlines()

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

    # Passes.

    def next_pass(self, now_s: float) -> Pass | None:
        """Take the next pass out of the lanes; ``None`` if nothing is to run now.

        Every pass that is returned must come back, to ``finish`` or to ``retry``.
        """
        self._withdraw_expired(now_s)
        if (linger_until_s := self._linger_until_s()) is not None and now_s < linger_until_s:
            return None
        leading = self._leading_lane()
        if leading is None:
            return None
        entries = self._lanes[leading].take_group() or self._compose(leading)
        composed = Pass(entries=entries, composed_s=now_s, predicted_s=self._predict_s(entries))
        self._passes.add(composed)
        self._running.update(entries)
        self._credit(composed, composed.predicted_s)
        return composed

    def next_event_s(self, now_s: float) -> float | None:
        """When to ask again even though nothing has happened: a deadline, or the end of a linger.

        ``None``: only an arrival or the end of a pass changes anything.
        """
        if self._expired:
            return now_s
        while self._deadlines and not self._is_alive(self._deadlines[0][2]):
            heappop(self._deadlines)
        moments = [self._deadlines[0][0]] if self._deadlines else []
        # A linger that is over is no event: the pass is there for whichever slot asks next.
        if (linger_until_s := self._linger_until_s()) is not None and linger_until_s > now_s:
            moments.append(linger_until_s)
        return min(moments, default=None)

    def finish(self, done: Pass, *, device_s: float, failed: Collection[Entry] = ()) -> None:
        """Take note that a pass came back with results.

        Args:
            done: The pass.
            device_s: What it cost, as measured; corrects the prediction that was charged for it.
            failed: Entries that got an error of their own instead of a result.
        """
        self._passes.remove(done)
        self._num_passes += 1
        for entry in done.entries:
            if entry in self._running:
                self._running.remove(entry)
                tally = self._tallies[entry.lane]
                if entry in failed:
                    tally.num_failed += 1
                else:
                    tally.num_done += 1
        for lane, num_tokens in done.num_tokens_by_lane().items():
            self._tallies[lane].device_s += device_s * num_tokens / done.num_tokens
        self._credit(done, device_s - done.predicted_s)
        self._cost.observe(_shape_of(done.entries), device_s)

    def retry(self, failed: Pass, *, is_runner_lost: bool) -> tuple[Entry, ...]:
        """Let the entries of a pass that came back without results run again, as far as that makes sense.

        Entries that were cancelled or expired under way are left out.

        Args:
            failed: The pass.
            is_runner_lost: The runner died under it, by the pass's fault or not. False: the model
                raised, and would raise again.

        Returns:
            Entries that are given up: a single one that raised, or that was alone when a runner died
            that was not the first.
        """
        self._passes.remove(failed)
        self._num_failed_passes += 1
        living = [entry for entry in failed.entries if entry in self._running]
        self._running.difference_update(living)
        if is_runner_lost:
            for entry in living:
                entry.num_attempts += 1
        # A group comes from one pass, so its entries have died together.
        is_first_death = is_runner_lost and all(entry.num_attempts == 1 for entry in living)
        if len(failed.entries) == 1 and not is_first_death:
            for entry in living:
                self._tallies[entry.lane].num_failed += 1
            return tuple(living)
        for lane, queue in self._lanes.items():
            group = [entry for entry in living if entry.lane is lane]
            # A mixed pass falls into its lanes first, and one that lost members is smaller already.
            is_cut = len(group) < len(failed.entries)
            middle = len(group) if is_first_death or is_cut else len(group) // 2
            for half in (group[middle:], group[:middle]):
                if half:
                    queue.push_group(half)
        return ()

    # State, for people and for metrics.

    def lane_load(self, lane: Lane) -> LaneLoad:
        """How much waits in a lane, from its counters: cheap enough to be told with every answer."""
        queue = self._lanes[lane]
        return LaneLoad(num_waiting=len(queue), num_waiting_tokens=queue.num_tokens)

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
            num_passes=self._num_passes,
            num_failed_passes=self._num_failed_passes,
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

    # Composing a pass.

    def _leading_lane(self) -> Lane | None:
        """The lane whose turn it is: the first one that is owed a pass, else the first one that waits."""
        waiting = [lane for lane in Lane if self._lanes[lane]]
        for lane in waiting:
            credit_s = self._credit_s.get(lane, 0.0)
            if credit_s > 0 and credit_s >= self._turn_cost_s(lane):
                return lane
        return waiting[0] if waiting else None

    def _turn_cost_s(self, lane: Lane) -> float:
        """What the lane's next pass of its own would cost."""
        entries = self._lanes[lane].group or self._pick(
            lane, [], self._limits.max_pass_tokens, self._limits.max_pass_entries
        )
        return self._predict_s(entries)

    def _compose(self, leading: Lane) -> tuple[Entry, ...]:
        """Fill one pass: the leading lane first, then the others in their order."""
        chosen: list[Entry] = []
        num_tokens = 0
        for lane in sorted(Lane, key=lambda lane: lane is not leading):
            has_queries = any(entry.lane is Lane.QUERY for entry in chosen)
            is_fill = has_queries and lane is not Lane.QUERY
            max_tokens = self._limits.fill_tokens if is_fill else self._limits.max_pass_tokens
            picked = self._pick(
                lane, chosen, max_tokens - num_tokens, self._limits.max_pass_entries - len(chosen)
            )
            self._lanes[lane].take(picked)
            chosen += picked
            num_tokens += sum(entry.num_tokens for entry in picked)
        return tuple(chosen)

    def _pick(self, lane: Lane, chosen: Sequence[Entry], room_tokens: int, room_entries: int) -> list[Entry]:
        """Choose who of a lane joins the entries chosen so far. Changes nothing."""
        queue = self._lanes[lane]
        if queue.group and chosen:
            return []  # The group is first in line and runs apart; to pass it by would starve it.
        first = next(iter(queue), None)
        if first is not None and not chosen and first.num_tokens > room_tokens:
            return [first]  # It will never fit better than alone.
        if lane is Lane.QUERY or queue.num_overtakings >= _MAX_OVERTAKINGS:
            return _in_order(queue, room_tokens, room_entries)
        return _best_fit(queue, room_tokens, room_entries)

    def _linger_until_s(self) -> float | None:
        """Until when a pass waits for company. ``None``: there is no pass, or it has no reason to wait."""
        queues = self._lanes.values()
        if not self._lingers or self._lanes[Lane.QUERY] or any(queue.group for queue in queues):
            return None
        is_full = (
            sum(queue.num_tokens for queue in queues) >= self._limits.max_pass_tokens
            or sum(len(queue) for queue in queues) >= self._limits.max_pass_entries
        )
        arrivals_s = [arrival_s for queue in queues if (arrival_s := queue.oldest_arrival_s()) is not None]
        return None if is_full or not arrivals_s else min(arrivals_s) + self._limits.max_wait_s

    # Service.

    def _credit(self, charged: Pass, seconds: float) -> None:
        """Give each waiting lane its share of the seconds, and deduct what it got of the pass."""
        tokens = charged.num_tokens_by_lane()
        for lane, share in self._limits.shares.items():
            received_s = seconds * tokens.get(lane, 0) / charged.num_tokens
            earned_s = self._credit_s[lane] + share * seconds - received_s
            self._credit_s[lane] = max(0.0, earned_s) if self._lanes[lane] else 0.0

    def _predict_s(self, entries: Collection[Entry]) -> float:
        return self._cost.predict_s(_shape_of(entries))

    # Admission.

    def _refuse_overflow(self, lane: Lane, num_entries: int, num_tokens: int, now_s: float) -> None:
        queue = self._lanes[lane]
        measures = (
            ("entries", num_entries, len(queue), self._limits.max_waiting_entries[lane]),
            ("tokens", num_tokens, queue.num_tokens, self._limits.max_waiting_tokens[lane]),
        )
        for what, num_new, _, limit in measures:
            if num_new > limit:
                self._tallies[lane].num_refused += num_entries
                raise SubmissionTooLargeError(lane, what=what, limit=limit, num_new=num_new)
        for what, num_new, num_waiting, limit in measures:
            if num_waiting + num_new > limit:
                self._tallies[lane].num_refused += num_entries
                raise QueueFullError(
                    lane,
                    what=what,
                    num_waiting=num_waiting,
                    limit=limit,
                    num_new=num_new,
                    # Both measures count: room for the entries may come before room for the tokens.
                    retry_after_s=self._time_to_room_s(
                        lane, max((old + new - most) / old for _, new, old, most in measures if old), now_s
                    ),
                )

    def _time_to_room_s(self, lane: Lane, part: float, now_s: float) -> float:
        """When so large a part of the lane's backlog will have run, with all slots at work."""
        own_s = part * self._backlog_s(lane)
        ahead_s = sum(self._backlog_s(other) for other in islice(Lane, list(Lane).index(lane)))
        running_s = sum(max(0.0, out.composed_s + out.predicted_s - now_s) for out in self._passes)
        drain_s = ahead_s + own_s
        if share := self._limits.shares.get(lane, 0.0):
            drain_s = min(drain_s, own_s / share)
        return (running_s + drain_s) / self._num_slots

    def _backlog_s(self, lane: Lane) -> float:
        return self._cost.predict_backlog_s(
            num_tokens=self._lanes[lane].num_tokens,
            num_image_tokens=self._lanes[lane].num_image_tokens,
            num_entries=len(self._lanes[lane]),
            max_tokens=self._limits.max_pass_tokens,
            max_entries=self._limits.max_pass_entries,
        )

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


def _in_order(queue: Iterable[Entry], room_tokens: int, room_entries: int) -> list[Entry]:
    """The first ones in line, as many as fit. Nobody is passed over."""
    chosen: list[Entry] = []
    for entry in queue:
        room_tokens -= entry.num_tokens
        if room_tokens < 0 or len(chosen) == room_entries:
            break
        chosen.append(entry)
    return chosen


def _best_fit(queue: Iterable[Entry], room_tokens: int, room_entries: int) -> list[Entry]:
    """The first ones in line, as many as fit, then from those just behind whatever fills the rest best."""
    chosen = _in_order(queue, room_tokens, room_entries)
    room_tokens -= sum(entry.num_tokens for entry in chosen)
    behind = list(islice(queue, len(chosen), len(chosen) + _LOOK_PAST))
    # Largest first; of equal ones the older, since sorting is stable.
    for entry in sorted(behind, key=lambda entry: -entry.num_tokens):
        if len(chosen) == room_entries:
            break
        if entry.num_tokens <= room_tokens:
            chosen.append(entry)
            room_tokens -= entry.num_tokens
    return chosen


def _shape_of(entries: Collection[Entry]) -> Shape:
    return Shape(
        num_tokens=sum(entry.num_tokens for entry in entries),
        num_image_tokens=sum(entry.num_image_tokens for entry in entries),
    )
