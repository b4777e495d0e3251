"""Who is let in, and when those who are not may come back. Changes nothing that waits or runs.

Rule 1: a submission is let in whole, or refused with a reason and its numbers.
Rule 2: only slots that are ready count. One whose runner restarts runs nothing, however idle it looks.

**A lane is bounded** in entries, and in seconds that the ready slots need for them. One request of any size
may wait in an empty lane, or it would be told to come back for ever.

**Nobody shuts others out.** In a lane that is full a tenant may still wait with one request, or with as many
as are its part of the bound, until the lane holds half as much again. So whoever fills a lane is the one who
is refused, and the others find room that turns are about to make for them anyway: tenants are served in
turns, so what is let in beyond the bound waits for its own line and not for the whole lane.

**What is told can be counted on.** The wait of who is refused is the time until there is room, behind all who
were promised room before, unless he holds little; and that room is kept (promises.py) for who can be known
again when he comes back. The end of what has a deadline is expected by the turns of lanes and tenants. While
no slot is ready, the wait and the end begin with the rest of the restart.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import exp, inf

from batching.cost import CostModel, Shape
from batching.errors import DeadlineUnmeetableError, QueueFullError, SubmissionTooLargeError
from batching.lanes import LaneQueue
from batching.limits import Limits
from batching.lines import SlotLines
from batching.promises import MAX_WAIT_S, Promise, PromiseBook
from batching.room import TINY_S, Room
from batching.types import Entry, Lane

_OVERDRAFT = 0.5
"""Part of a lane's bound that may wait beyond it, for tenants that hold little. When one has filled the lane
alone, that is the part of the second."""
_OVERDRAFT_OF_RETURNS = 0.25
"""Less of it for those who come back at their time: they are not to take it from the others."""
_LATE = 0.25
"""A restart that takes longer than expected is expected to take so much of its time more."""
_RECENT_S = 5.0
"""Device time over which it is remembered who got how much of it."""
_LEAST_MEMORY = 0.2
"""Less of it, about a second, says nothing of what is to come."""
_SATURATED = 0.1
"""Lanes that left less than this of the device, apart from shares, are taken to go on so."""
_NUM_WEIGHED = 256
"""Entries that are looked at one by one to say when there is room again; those behind them are averaged."""
_NOTHING = Shape(num_tokens=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Entries of one lane and one tenant that would like to wait, all of them or none."""

    lane: Lane
    tenant: str
    num_entries: int
    work: Shape | None
    """``None``: nobody knows yet how long they are."""
    ticket: Hashable = None
    """What they are known by if they were refused and come back. ``None``: by nothing."""

    @property
    def least_work(self) -> Shape:
        """What they cost, or the least that so many can."""
        return self.work or Shape(num_tokens=self.num_entries, num_squared=self.num_entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Excess:
    """How much more than allowed there is of entries, and of work."""

    num_entries: int
    work_s: float

    @property
    def is_nothing(self) -> bool:
        return self.num_entries <= 0 and self.work_s <= TINY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Overfull:
    """Why somebody cannot wait."""

    excess: _Excess
    """What there would be too much of if he waited, too."""
    in_the_way: _Excess
    """The same, beside what is kept for others where that decides."""
    in_his_way: _Excess
    """What has to go before he may come in."""
    waits_behind_promises: bool


class Admission:
    """Looks at what waits and runs. Owns what it saw of service and of restarts, and what it promised."""

    def __init__(
        self,
        limits: Limits,
        *,
        cost: CostModel,
        lanes: Mapping[Lane, LaneQueue],
        slots: Sequence[SlotLines],
        turn_cost_s: Callable[[Lane], float],
        first_start_s: Callable[[float], float],
        restart_s: float,
    ) -> None:
        """Begin without memories.

        Args:
            limits: How much may wait.
            cost: What it costs.
            lanes: What waits.
            slots: What is out.
            turn_cost_s: What the next pass that a lane leads would cost.
            first_start_s: In what time from a moment on an urgent pass can begin on one of the slots that are
                ready; 0 if none is.
            restart_s: How long a runner takes to be ready again, until one was seen to.
        """
        self._limits = limits
        self._cost = cost
        self._lanes = lanes
        self._slots = slots
        self._turn_cost_s = turn_cost_s
        self._first_start_s = first_start_s
        self._restart_s = restart_s
        # Of the last seconds of device time, the part that each lane got.
        self._recent = dict.fromkeys(Lane, 0.0)
        self._promises = {lane: PromiseBook() for lane in Lane}

    def check(self, entries: Sequence[Entry], now_s: float, *, ticket: Hashable = None) -> None:
        """Return if these entries of one lane and one tenant may wait.

        Args:
            entries: All of them come together.
            now_s: The present moment.
            ticket: What they are known by if they were refused and come back. ``None``: by nothing.

        Raises:
            SubmissionTooLargeError: They are more than the lane may hold even when it is empty.
            QueueFullError: They are more than the lane may hold now; the error carries the time in
                which there is room for them.
            DeadlineUnmeetableError: Their deadline is earlier than they can be done.
        """
        lane = entries[0].lane
        asked = Asked(
            lane=lane,
            tenant=entries[0].tenant,
            num_entries=len(entries),
            work=Shape.of(entry.shape for entry in entries),
            ticket=ticket,
        )
        self.check_room(asked, now_s)
        self._refuse_unmeetable(entries, now_s)
        self._promises[lane].redeem(ticket, now_s)

    def observe_pass(self, parts: Mapping[Lane, float], device_s: float) -> None:
        """Remember which part each lane had of a pass that took so long."""
        kept = exp(-device_s / _RECENT_S)
        for lane in Lane:
            self._recent[lane] = kept * self._recent[lane] + (1 - kept) * parts.get(lane, 0.0)

    def observe_restart(self, restart_s: float) -> None:
        """Remember how long a runner was away: the next one is expected to be so for as long."""
        self._restart_s = restart_s

    def set_limits(self, limits: Limits) -> None:
        """Go by other limits from now on."""
        self._limits = limits

    # How much is there.

    @property
    def num_ready(self) -> int:
        """Slots that share the work. While there is none it is counted as for the first that comes back."""
        return sum(lines.is_ready for lines in self._slots) or 1

    def waiting_s(self, lane: Lane) -> float:
        """How long all ready slots together need for what waits in a lane."""
        queue = self._lanes[lane]
        return self._backlog_s(queue.shape, len(queue)) / self.num_ready

    def num_promised(self, lane: Lane, now_s: float) -> int:
        """For how many entries of a lane room is kept."""
        return self._promises[lane].total(now_s)[0]

    def max_waiting_tokens(self, lane: Lane) -> int:
        """About how many tokens may wait in a lane."""
        return self._cost.count_tokens(
            self._limits.max_waiting_s[lane] * self.num_ready,
            pass_s=self._limits.max_pass_s,
            max_tokens=self._limits.max_pass_tokens,
        )

    def _backlog_s(self, work: Shape, num_entries: int) -> float:
        """Device seconds for this work, in full passes."""
        limits = self._limits
        num_passes = self._cost.count_passes(
            work,
            num_entries=num_entries,
            pass_s=limits.max_pass_s,
            max_tokens=limits.max_pass_tokens,
            max_entries=limits.max_pass_entries,
        )
        return self._cost.predict_backlog_s(work, num_passes=num_passes)

    def _out_s(self, now_s: float) -> float:
        """Device seconds that are left of what is out."""
        return sum(
            lines.rest_s(now_s) + sum(out.predicted_s for out in lines.waiting) for lines in self._slots
        )

    def _absence_s(self, now_s: float) -> float:
        """In what time the first slot is expected to be ready; 0 if one is."""
        rests_s: list[float] = []
        for lines in self._slots:
            if lines.absent_since_s is None:
                return 0.0
            away_s = now_s - lines.absent_since_s
            rests_s.append(max(self._restart_s - away_s, _LATE * away_s))
        # Of slots that have ended nothing is expected.
        return min((rest_s for rest_s in rests_s if rest_s < inf), default=self._restart_s)

    # Is there room.

    def check_room(self, asked: Asked, now_s: float) -> None:
        """Return if there is room for these.

        Who is refused finds it when he comes back at his time with the same ticket.

        Raises:
            SubmissionTooLargeError: They are more than the lane may hold even when it is empty.
            QueueFullError: They are more than the lane may hold now.
        """
        lane, max_entries = asked.lane, self._limits.max_waiting_entries[asked.lane]
        if asked.num_entries > max_entries:
            raise SubmissionTooLargeError(lane, what="entries", limit=max_entries, num_new=asked.num_entries)
        overfull = self._overfull(asked, now_s)
        if overfull is None:
            return
        # If he came for a promise it is used up: he gets another one.
        self._promises[lane].redeem(asked.ticket, now_s)
        wait_s = self._keep(asked, self._wait_s(asked, overfull, now_s), now_s)
        raise self._refusal(asked, overfull, wait_s)

    def _overfull(self, asked: Asked, now_s: float) -> _Overfull | None:
        """Why there is no room for these; ``None`` if there is."""
        if not self._lanes[asked.lane]:
            return None
        is_back = self._promises[asked.lane].is_due(asked.ticket, now_s)
        excess = self._excess(asked)
        # What is kept for others is not kept from him for whom some of it was; and who finds no room anyway
        # need not be weighed against it, which takes longer than all else here.
        is_weighed = excess.is_nothing and not is_back
        in_the_way = self._beside_promises(asked.lane, excess, now_s) if is_weighed else excess
        if in_the_way.is_nothing:
            return None
        # It was foreseen that there would be room, so what was foreseen wrongly must not be put down to him.
        if is_back:
            counted = self._as_one_lane_full(excess, asked)
            if self._without(_OVERDRAFT_OF_RETURNS, asked.lane, counted).is_nothing:
                return None
        holds_little = self._holds_little(asked, now_s)
        in_his_way = self._without(_OVERDRAFT, asked.lane, excess) if holds_little else excess
        if holds_little and in_his_way.is_nothing:
            return None
        return _Overfull(
            excess=excess,
            in_the_way=in_the_way,
            in_his_way=in_his_way,
            # Who holds little finds his room beside what is promised.
            waits_behind_promises=not holds_little,
        )

    def _refusal(self, asked: Asked, overfull: _Overfull, wait_s: float) -> QueueFullError:
        lane, excess, in_the_way = asked.lane, overfull.excess, overfull.in_the_way
        if in_the_way.num_entries > 0:
            return QueueFullError(
                lane,
                what="entries",
                num_waiting=len(self._lanes[lane]),
                limit=self._limits.max_waiting_entries[lane],
                num_new=asked.num_entries,
                retry_after_s=wait_s,
                num_kept=in_the_way.num_entries - excess.num_entries,
            )
        return QueueFullError(
            lane,
            what="seconds of work",
            num_waiting=round(self.waiting_s(lane), 3),
            limit=self._limits.max_waiting_s[lane],
            num_new=round(self._backlog_s(asked.least_work, asked.num_entries) / self.num_ready, 3),
            is_at_least=asked.work is None,
            retry_after_s=wait_s,
            num_kept=round((in_the_way.work_s - excess.work_s) / self.num_ready, 3),
        )

    def _excess(self, asked: Asked) -> _Excess:
        """What would be too much in their lane with these in it, too; negative where there is room."""
        queue, num_entries = self._lanes[asked.lane], len(self._lanes[asked.lane]) + asked.num_entries
        work_s = self._backlog_s(Shape.of((queue.shape, asked.least_work)), num_entries)
        return _Excess(
            num_entries=num_entries - self._limits.max_waiting_entries[asked.lane],
            work_s=work_s - self._max_work_s(asked.lane),
        )

    def _max_work_s(self, lane: Lane) -> float:
        """Device seconds that may wait in a lane."""
        return self._limits.max_waiting_s[lane] * self.num_ready

    def _as_one_lane_full(self, excess: _Excess, asked: Asked) -> _Excess:
        """The same, but work that is more than a lane may hold counts as that much.

        It may wait in an empty lane, and his moment is when the lane will be nearly so.
        """
        own_s = self._backlog_s(asked.least_work, asked.num_entries)
        larger_s = max(0.0, own_s - self._max_work_s(asked.lane))
        return _Excess(num_entries=excess.num_entries, work_s=excess.work_s - larger_s)

    def _without(self, overdraft: float, lane: Lane, excess: _Excess) -> _Excess:
        """What of it is too much even for who may go beyond the bound by such a part of it."""
        return _Excess(
            num_entries=excess.num_entries - int(overdraft * self._limits.max_waiting_entries[lane]),
            work_s=excess.work_s - overdraft * self._max_work_s(lane),
        )

    def _beside_promises(self, lane: Lane, excess: _Excess, now_s: float) -> _Excess:
        """What is too much if those who were promised room shall find it."""
        book = self._promises[lane]
        num_promised, promised_s = book.total(now_s)
        if not num_promised:
            return excess
        max_s = self._max_work_s(lane)
        speed = max_s / max(TINY_S, self._time_to_room_s(lane, max_s, now_s))
        kept_s = book.most_in_the_way(now_s, work_s=excess.work_s + max_s, speed=speed)
        num_kept = round(num_promised * kept_s / promised_s) if promised_s > 0 else num_promised
        return _Excess(num_entries=excess.num_entries + num_kept, work_s=excess.work_s + kept_s)

    def _holds_little(self, asked: Asked, now_s: float) -> bool:
        """Whether a tenant has nothing waiting and nothing promised, or no more of both than its part."""
        lane, queue = asked.lane, self._lanes[asked.lane]
        num_waiting, waiting = queue.waiting_of(asked.tenant)
        num_promised, promised_s = self._promises[lane].total_of(asked.tenant, now_s, but_for=asked.ticket)
        num_tenants = queue.num_tenants + (num_waiting == 0)
        if not num_waiting + num_promised:
            return True
        own = Shape.of((waiting, asked.least_work))
        own_s = self._backlog_s(own, num_waiting + asked.num_entries) + promised_s
        num_own = num_waiting + num_promised + asked.num_entries
        return (
            num_own <= self._limits.max_waiting_entries[lane] / num_tenants
            and own_s <= self._max_work_s(lane) / num_tenants + TINY_S
        )

    def _wait_s(self, asked: Asked, overfull: _Overfull, now_s: float) -> float:
        """In what time so much of a lane will have gone that there is room for these."""
        lane, excess = asked.lane, overfull.in_his_way
        queue = self._lanes[lane]
        num_promised, promised_s = 0, 0.0
        if overfull.waits_behind_promises:
            num_promised, promised_s = self._promises[lane].total(now_s)
        all_s = self._backlog_s(queue.shape, len(queue))
        num_over, over_s = excess.num_entries + num_promised, excess.work_s + promised_s
        if num_promised:
            # Most of what waits has to go, if not all: to look at each of it would take long, and this is
            # where a server has least time.
            leaving_s = max(min(over_s, all_s), all_s * min(1.0, num_over / len(queue)))
        else:
            leaving_s = self._time_to_leave_s(lane, num_over, over_s)
        # What is served to the other tenants meanwhile they may send again; but not more than all goes.
        num_tenants = queue.num_tenants + (queue.waiting_of(asked.tenant)[0] == 0)
        leaving_s = max(leaving_s, min(num_tenants * leaving_s, all_s))
        # When all that waits has gone, those who come back before these have still to go.
        leaving_s += max(0.0, over_s - all_s)
        if num_promised and num_over > len(queue):
            leaving_s = max(leaving_s, all_s + promised_s * (num_over - len(queue)) / num_promised)
        return self._time_to_room_s(lane, leaving_s, now_s)

    def _keep(self, asked: Asked, wait_s: float, now_s: float) -> float:
        """Keep room for who is refused, if he can be known again. Returns the wait that he is told."""
        if asked.ticket is None or wait_s > MAX_WAIT_S:
            return wait_s
        queue, limits = self._lanes[asked.lane], self._limits
        # Its part of full passes, as small ones share what a pass costs anyway. Never less than the average
        # of what waits: before they are tokenised nobody knows how long they are.
        shared = 1 + self._cost.fixed_s / self._cost.room_s(limits.max_pass_s)
        average_s = self._backlog_s(queue.shape, len(queue)) / len(queue)
        own_s = self._cost.predict_work_s(asked.least_work) * shared
        own = Promise(
            tenant=asked.tenant,
            num_entries=asked.num_entries,
            work_s=max(own_s, average_s * asked.num_entries),
            due_s=now_s + wait_s,
        )
        kept = self._promises[asked.lane].keep(asked.ticket, own)
        return kept.due_s - now_s if kept.due_s > now_s else wait_s

    def _time_to_room_s(self, lane: Lane, leaving_s: float, now_s: float) -> float:
        """In what time a lane will have been given so many device seconds.

        It holds if nobody new comes before the lane, or if they come as they came of late; what comes after
        it may take its share.
        """
        device_s = self._out_s(now_s) + self._drain_s(lane, leaving_s)
        return self._absence_s(now_s) + device_s / self.num_ready * (1 + max(0.0, self._cost.residual()))

    def _drain_s(self, lane: Lane, leaving_s: float) -> float:
        """Device seconds until a lane has been given so many of them, and the other lanes theirs."""
        ahead = list(Lane)[: list(Lane).index(lane)]
        behind = [other for other in list(Lane)[len(ahead) + 1 :] if self._lanes[other]]
        share = self._limits.shares.get(lane, 0.0)
        # If nobody new comes: those ahead, then the lane, and meanwhile the shares of those behind.
        ahead_s = sum(self._time_to_leave_s(other, len(self._lanes[other]), inf) for other in ahead)
        turns_s = sum(self._turn_cost_s(other) for other in behind if self._limits.shares.get(other))
        unshared_part = 1 - sum(self._limits.shares.get(other, 0.0) for other in behind)
        in_order_s = (ahead_s + leaving_s) / unshared_part + turns_s
        # If they go on to come: what they leave, or what is owed to the lane. What it leads is saved up for,
        # and the turn before may have used up everything.
        saved_s = leaving_s + self._turn_cost_s(lane)
        # A lane that nothing is owed to has no better hope than that they leave something after all.
        owed_s = saved_s / share if share else (ahead_s + leaving_s) / _SATURATED
        remembered = max(_LEAST_MEMORY, sum(self._recent.values()))
        free_part = 1 - sum(self._recent[other] for other in ahead) / remembered
        if free_part < share + _SATURATED:
            return owed_s
        as_of_late_s = max(in_order_s, saved_s / free_part) if free_part < 1 else in_order_s
        return min(as_of_late_s, owed_s) if share else as_of_late_s

    def _time_to_leave_s(self, lane: Lane, num_over: int, over_s: float) -> float:
        """Device seconds until so many entries of a lane, and so much of its work, are in passes."""
        queue = self._lanes[lane]
        room = Room(self._cost, self._limits, self._limits.max_pass_s)
        full_s = self._cost.fixed_s + room.work_s
        left, num_left, leaving_s = _NOTHING, 0, 0.0
        for entry in islice(chain(queue.group, queue), _NUM_WEIGHED):
            if num_left >= num_over and self._backlog_s(left, num_left) >= over_s:
                return leaving_s
            left, num_left = Shape.of((left, entry.shape)), num_left + 1
            if not room.is_empty and not room.fits(entry):
                room = Room(self._cost, self._limits, self._limits.max_pass_s)
            if room.is_empty:
                # Passes are counted full: others ride along.
                leaving_s += max(full_s, self._cost.predict_s(entry.shape))
            room.take(entry)
        if num_left == len(queue):
            return leaving_s
        backlog_s = self._backlog_s(queue.shape, len(queue))
        part = max(num_over / len(queue), over_s / backlog_s if backlog_s > 0 else 1.0)
        return max(leaving_s, min(1.0, part) * len(queue) / num_left * leaving_s)

    # Is there time.

    def _refuse_unmeetable(self, entries: Sequence[Entry], now_s: float) -> None:
        deadline_s = min((entry.deadline_s for entry in entries if entry.deadline_s is not None), default=inf)
        if deadline_s == inf or self._is_idle():
            # An idle device tries: a prediction that is wrong is put right by nothing else.
            return
        queue = self._lanes[entries[0].lane]
        predicted_s = self._time_to_finish_s(entries, queue.waiting_of(entries[0].tenant), now_s)
        if now_s + predicted_s > deadline_s:
            # Only now those are counted that would really go before it.
            predicted_s = self._time_to_finish_s(entries, queue.waiting_before(entries[0]), now_s)
        if now_s + predicted_s > deadline_s:
            raise DeadlineUnmeetableError(timeout_s=max(0.0, deadline_s - now_s), predicted_s=predicted_s)

    def _is_idle(self) -> bool:
        return (
            any(lines.is_ready for lines in self._slots)
            and not any(lines.num_out for lines in self._slots)
            and not any(self._lanes.values())
        )

    def _time_to_finish_s(self, entries: Sequence[Entry], line: tuple[int, Shape], now_s: float) -> float:
        """In what time these entries would be done, behind so many of their tenant.

        Tenants take turns: whoever has little waiting does not wait for those who have much.
        """
        lane, num_slots, (num_before, before) = entries[0].lane, self.num_ready, line
        queue = self._lanes[lane]
        num_own, own_waiting = queue.waiting_of(entries[0].tenant)
        new = Shape.of(entry.shape for entry in entries)
        own_line_s = self._backlog_s(Shape.of((before, new)), num_before + len(entries))
        others_s = self.waiting_s(lane) * num_slots - self._backlog_s(own_waiting, num_own)
        # What is tried again goes before all of them; it counts as one more.
        num_others = queue.num_tenants - (num_own > 0) + bool(queue.group)
        turns_s = max(0.0, min(others_s, num_others * own_line_s))
        ahead_s = (self._backlog_s(before, num_before) + turns_s) / num_slots
        own_part_s = self._backlog_s(new, len(entries)) / min(len(entries), num_slots)
        return self._time_to_lane_s(lane, now_s) + ahead_s + own_part_s

    def _time_to_lane_s(self, lane: Lane, now_s: float) -> float:
        """In what time the devices come to the first of a lane."""
        absence_s = self._absence_s(now_s)
        if lane is Lane.QUERY:
            return absence_s + self._first_start_s(now_s)
        ahead_s = sum(self.waiting_s(other) for other in list(Lane)[: list(Lane).index(lane)])
        return absence_s + self._out_s(now_s) / self.num_ready + ahead_s
