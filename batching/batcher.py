"""Hands passes to runners, and each result to the caller who waits for it. Decides nothing.

The law of this file: every entry that was accepted ends in a result or in an exception. A submission is
one future; it is settled by the last result, the first failure, a deadline, or the end of the batcher,
and settling it gives up whatever of it still waits.

Whenever something has come in or come back, or at the scheduler's next moment, every slot whose runner is
there asks for passes, all in one go however much has happened in a turn of the loop. Each pass that is out is
a task: one runs, one may be staged behind it, and an urgent one may overtake that or break in. And each slot
is a task, which sleeps until its runner is away and has everybody ask when it is back.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from math import inf

from batching.cost import CostModel
from batching.errors import (
    DeadlineError,
    EntryFailedError,
    NoRunnersError,
    RunnerLostError,
    RunnerMemoryError,
    ShuttingDownError,
)
from batching.limits import Limits
from batching.runner import Runner, RunResult
from batching.scheduler import Scheduler
from batching.statistics import LaneLoad, SchedulerStatistics
from batching.types import Entry, Lane, Pass, PassReport, Slot, SubmissionOutcome, WorkItem

_logger = logging.getLogger(__name__)

_TIMER_SLACK_S = 1e-9
"""Timers are set so much later: one that fires a rounding error before its moment would only be set again."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Submission:
    """Items that came together, and what is there of their outcome so far."""

    entries: Sequence[Entry]
    outcome: asyncio.Future[SubmissionOutcome]
    results: dict[Entry, object] = field(default_factory=dict)
    queue_s: float = 0.0
    runner_wait_s: float = 0.0
    device_s: float = 0.0


class Batcher:
    """Owns the scheduler, one task a runner, and the futures of all callers.

    Everything happens on the event loop that ``start`` was called on. Submissions may come before
    ``start``; they wait.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        limits: Limits,
        cost: CostModel | None = None,
        name: str = "batcher",
        clock: Callable[[], float] = time.monotonic,
        on_pass: Callable[[PassReport], None] | None = None,
        restart_s: float | None = None,
    ) -> None:
        """Wire up a batcher that does not run yet.

        Args:
            runners: One for each slot; all of them compute the same thing.
            limits: Bounds of passes and queues.
            cost: What passes cost, as far as it is known; it goes on learning from each pass.
            name: Appears in logs and in ``repr``.
            clock: Monotonic seconds, at the pace of the event loop's own clock.
            on_pass: Told of every pass that came back, with or without results.
            restart_s: How long a runner takes to be ready again, as far as that is known: what its first
                start took, say. Each restart corrects it.

        Raises:
            ValueError: There is no runner.
        """
        if not runners:
            raise ValueError("a batcher needs at least one runner")
        self._runners = tuple(runners)
        self._scheduler = Scheduler(
            limits,
            cost=cost or CostModel(),
            slots=[Slot(depth=runner.depth, can_interrupt=runner.can_interrupt) for runner in runners],
            restart_s=restart_s,
        )
        self._name = name
        self._clock = clock
        self._on_pass = on_pass
        self._owners: dict[Entry, _Submission] = {}
        self._slots: list[asyncio.Task[None]] = []
        # What is out on each slot, and the task that waits for it.
        self._out: list[dict[Pass, asyncio.Task[None]]] = [{} for _ in self._runners]
        # Set while a runner is away, or was never seen: its slot's task waits for it.
        self._absences = [asyncio.Event() for _ in self._runners]
        for absence in self._absences:
            absence.set()
        self._dispatching: asyncio.Handle | None = None
        # Passes are nobody's own: what a request has in its context must not go on in those of others.
        self._context = copy_context()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = inf
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._is_closing = False
        # Why slots have ended, the last one last.
        self._ends: dict[int, BaseException] = {}
        self._last_end: BaseException | None = None

    def start(self) -> None:
        """Begin to serve: one task for each runner."""
        assert not self._slots, "a batcher is started once"
        for slot, runner in enumerate(self._runners):
            task = asyncio.create_task(self._keep_slot(slot, runner), name=f"{self._name} slot {slot}")
            task.add_done_callback(partial(self._on_slot_ended, slot))
            self._slots.append(task)

    async def submit(
        self,
        items: Sequence[WorkItem],
        *,
        lane: Lane,
        tenant: str = "",
        timeout_s: float | None = None,
        ticket: Hashable = None,
    ) -> SubmissionOutcome:
        """Run the items, in as many passes as that takes, and return when the last one has its result.

        If this call is cancelled, what still waits is given up at once, and what runs is computed for
        nobody.

        Args:
            items: What to run. All of it is admitted, or nothing.
            lane: Where it waits.
            tenant: On whose behalf; tenants of a lane get equal parts of its time.
            timeout_s: When it is not worth having any more, from now. ``None``: always worth having.
            ticket: What the submission is known by if it is refused and comes back: who comes at the time
                that he was told finds room. ``None``: by nothing.

        Raises:
            SubmissionTooLargeError: The lane cannot hold so much even when it is empty.
            QueueFullError: The lane cannot hold so much now.
            DeadlineUnmeetableError: The time-out would come first, by all that is known.
            DeadlineError: The time-out came first.
            EntryFailedError: An item failed; the others are given up.
            ShuttingDownError: The batcher is closing, or closed before the items had run.
            NoRunnersError: There is no runner left that could ever run them.
        """
        if self._is_closing:
            raise ShuttingDownError
        if self._last_end is not None:
            raise self._no_runners()
        now_s = self._clock()
        deadline_s = None if timeout_s is None else now_s + timeout_s
        entries = tuple(
            Entry(
                payload=item.payload,
                lane=lane,
                num_tokens=item.num_tokens,
                num_image_tokens=item.num_image_tokens,
                arrival_s=now_s,
                deadline_s=deadline_s,
                tenant=tenant,
            )
            for item in items
        )
        if not entries:
            return SubmissionOutcome(results=(), queue_s=0.0, device_s=0.0)
        self._scheduler.admit(entries, now_s, ticket=ticket)
        submission = _Submission(entries=entries, outcome=asyncio.get_running_loop().create_future())
        self._owners.update(dict.fromkeys(entries, submission))
        self._is_empty.clear()
        self._notify()
        try:
            return await submission.outcome
        finally:
            self._release(submission)

    def check_room(self, lane: Lane, *, tenant: str = "", num_items: int, ticket: Hashable = None) -> None:
        """Refuse so many items before it is known what they cost, if ``submit`` would in any case.

        A refusal keeps room for its ticket, as that of ``submit`` does.

        Raises:
            SubmissionTooLargeError: The lane cannot hold so many even when it is empty.
            QueueFullError: The lane cannot hold so many now, however little each of them costs.
        """
        self._scheduler.check_room(
            lane, tenant=tenant, num_entries=num_items, now_s=self._clock(), ticket=ticket
        )

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, finish what is there within ``drain_s``, give up the rest, end all tasks.

        What is given up gets ``ShuttingDownError``. The runners themselves are left to their owner.
        """
        self._is_closing = True
        self._scheduler.stop_lingering()
        self._notify()
        try:
            async with asyncio.timeout(drain_s):
                await self._is_empty.wait()
        except TimeoutError:
            _logger.warning("%s: %d entries are given up at shutdown", self._name, len(self._owners))
        finally:
            self._fail_all(ShuttingDownError)
            for handle in (self._timer, self._dispatching):
                if handle is not None:
                    handle.cancel()
            tasks = [*self._slots, *(task for out in self._out for task in out.values())]
            for task in tasks:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for out in self._out:
            for left in out:
                # Takes it off the books; nobody waits for it.
                self._scheduler.retry(left, self._clock(), is_runner_lost=True)
            out.clear()

    @property
    def limits(self) -> Limits:
        """Bounds of passes and queues as they are now: passes shrink where there is no memory for them."""
        return self._scheduler.limits

    def statistics(self) -> SchedulerStatistics:
        """A snapshot of the lanes and of what runs."""
        return self._scheduler.statistics(self._clock())

    def lane_load(self, lane: Lane) -> LaneLoad:
        """How much waits in a lane: cheap enough to be told with every answer."""
        return self._scheduler.lane_load(lane)

    def __repr__(self) -> str:
        busy = f"{sum(map(bool, self._out))} of {len(self._runners)} slots busy"
        return f"<Batcher {self._name}, {busy}: {self._scheduler!r}>"

    # A slot's life.

    async def _keep_slot(self, slot: int, runner: Runner) -> None:
        absence = self._absences[slot]
        while True:
            if not runner.is_ready:
                self._scheduler.set_ready(slot, self._clock(), is_ready=False)
                self._notify()
            await runner.wait_ready()
            absence.clear()
            self._scheduler.set_ready(slot, self._clock(), is_ready=True)
            self._notify()
            await absence.wait()

    def _note_absences(self) -> None:
        """Look for runners that are away; their slots' tasks wait for them from now on."""
        for slot, (absence, runner) in enumerate(zip(self._absences, self._runners, strict=True)):
            if not absence.is_set() and not runner.is_ready:
                absence.set()
                self._scheduler.set_ready(slot, self._clock(), is_ready=False)

    def _hand_out(self, slot: int, composed: Pass) -> None:
        run = self._run(slot, self._runners[slot], composed)
        task = asyncio.create_task(run, name=f"{self._name} pass on {slot}")
        self._out[slot][composed] = task
        task.add_done_callback(partial(self._on_pass_ended, slot, composed))

    async def _run(self, slot: int, runner: Runner, composed: Pass) -> None:
        started_s = self._clock()
        outcome = await _attempt(runner, composed)
        run_s = self._clock() - started_s
        del self._out[slot][composed]
        if isinstance(outcome, RunResult):
            self._deliver(composed, outcome, run_s)
        else:
            self._try_again(composed, outcome)
        self._notify()
        if self._ends:
            self._give_up_if_last()
        # The device and the callers first: whoever only watches is told a turn later.
        asyncio.get_running_loop().call_soon(self._report, slot, composed, run_s, outcome)

    def _report(self, slot: int, composed: Pass, run_s: float, outcome: RunResult | Exception) -> None:
        if self._on_pass is None:
            return
        has_run = isinstance(outcome, RunResult)
        report = PassReport(
            slot=slot,
            is_urgent=composed.is_urgent,
            breaks_in=composed.breaks_in,
            num_entries=composed.num_entries_by_lane(),
            num_tokens=composed.num_tokens_by_lane(),
            run_s=run_s,
            device_s=outcome.device_s if has_run else 0.0,
            predicted_s=composed.predicted_s,
            num_padding_tokens=outcome.num_padding_tokens if has_run else 0,
            oldest_wait_s=composed.oldest_wait_s,
            error=None if has_run else type(outcome).__name__,
        )
        try:
            self._on_pass(report)
        except Exception:
            # Whoever only watches must not be able to end a slot.
            _logger.exception("%s: the observer of passes raised", self._name)

    def _on_pass_ended(self, slot: int, composed: Pass, task: asyncio.Task[None]) -> None:
        """Let go of a runner that did not only fail but ended the task; the pass may run elsewhere."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._out[slot].pop(composed, None) is not None:
            self._try_again(composed, RunnerLostError(f"{task.get_name()} ended under the pass"))
        self._ends.setdefault(slot, error)
        self._absences[slot].set()
        self._slots[slot].cancel()

    def _on_slot_ended(self, slot: int, task: asyncio.Task[None]) -> None:
        """Note that a runner will never be ready again; what is out there may still come back."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ends.setdefault(slot, error)
        if slot in self._ends:
            self._scheduler.retire(slot, self._clock())
            _logger.error("%s has ended", task.get_name(), exc_info=self._ends[slot])
            self._notify()
            self._give_up_if_last()

    def _give_up_if_last(self) -> None:
        if all(slot.done() for slot in self._slots) and self._ends and not any(self._out):
            self._last_end = list(self._ends.values())[-1]
            self._fail_all(self._no_runners)

    # Outcomes.

    def _deliver(self, done: Pass, result: RunResult, run_s: float) -> None:
        outcomes = dict(zip(done.entries, result.results, strict=True))
        failed = [entry for entry, outcome in outcomes.items() if isinstance(outcome, Exception)]
        self._scheduler.finish(done, self._clock(), device_s=result.device_s, failed=failed)
        for submission in {self._owners[entry] for entry in done.entries if entry in self._owners}:
            submission.device_s += result.device_s
            submission.runner_wait_s = max(submission.runner_wait_s, run_s - result.device_s)
        for entry, outcome in outcomes.items():
            if isinstance(outcome, Exception):
                self._fail_entry(entry, outcome)
            elif (submission := self._owners.pop(entry, None)) is not None:
                submission.results[entry] = outcome
                submission.queue_s = max(submission.queue_s, done.composed_s - entry.arrival_s)
                self._settle_if_whole(submission)

    def _try_again(self, composed: Pass, error: Exception) -> None:
        if isinstance(error, RunnerMemoryError):
            max_tokens = self._scheduler.shrink_passes(composed)
            if max_tokens is not None:
                _logger.warning(
                    "%s: a pass of %d tokens found no memory; passes are kept to %d tokens from now on",
                    self._name,
                    composed.num_tokens,
                    max_tokens,
                )
        is_lost = isinstance(error, RunnerLostError)
        has_begun = not isinstance(error, RunnerLostError) or error.has_begun
        given_up = self._scheduler.retry(composed, self._clock(), is_runner_lost=is_lost, has_begun=has_begun)
        for entry in given_up:
            self._fail_entry(entry, error)

    def _settle_if_whole(self, submission: _Submission) -> None:
        if len(submission.results) < len(submission.entries):
            return
        if not submission.outcome.done():
            submission.outcome.set_result(
                SubmissionOutcome(
                    results=tuple(submission.results[entry] for entry in submission.entries),
                    queue_s=submission.queue_s,
                    runner_wait_s=submission.runner_wait_s,
                    device_s=submission.device_s,
                )
            )
        self._release(submission)

    def _fail_entry(self, entry: Entry, cause: Exception) -> None:
        if (submission := self._owners.get(entry)) is not None:
            self._fail(submission, EntryFailedError(submission.entries.index(entry), cause))

    def _fail_all(self, make_error: Callable[[], Exception]) -> None:
        for submission in dict.fromkeys(self._owners.values()):
            self._fail(submission, make_error())

    def _fail(self, submission: _Submission, error: Exception) -> None:
        if not submission.outcome.done():
            submission.outcome.set_exception(error)
        self._release(submission)

    def _release(self, submission: _Submission) -> None:
        """Give up whatever of the submission is still on its way."""
        for entry in submission.entries:
            if self._owners.pop(entry, None) is not None:
                self._scheduler.cancel(entry)
        if not self._owners:
            self._is_empty.set()

    def _no_runners(self) -> NoRunnersError:
        error = NoRunnersError(len(self._runners))
        error.__cause__ = self._last_end
        return error

    # Waking up.

    def _notify(self) -> None:
        """Have the slots ask for passes when everything that happens in this turn has happened (0058)."""
        if self._dispatching is None:
            loop = asyncio.get_running_loop()
            self._dispatching = loop.call_soon(self._dispatch, context=self._context)

    def _dispatch(self) -> None:
        """Let every slot ask for passes, in the order that the scheduler wants, until none gets any."""
        self._dispatching = None
        if self._last_end is not None:
            return
        try:
            # Nothing is awaited in here: a runner that is ready stays so until it is handed its pass.
            while True:
                self._note_absences()
                now_s = self._clock()
                if not self._hand_out_at(now_s):
                    break
            # By the same clock: what was refused for being early is what the timer is set for.
            self._look_ahead(now_s)
        except Exception as error:
            _logger.exception("%s cannot go on", self._name)
            self._last_end = error
            self._fail_all(self._no_runners)

    def _hand_out_at(self, now_s: float) -> bool:
        """Hand out what there is for every slot at this moment; false if there was nothing for any.

        If there was, ask again: queries that went to one slot may leave their place elsewhere to documents.
        """
        is_new = False
        for slot in self._scheduler.asking_order():
            if self._absences[slot].is_set():
                continue
            while (composed := self._scheduler.next_pass(now_s, slot)) is not None:
                self._hand_out(slot, composed)
                is_new = True
        return is_new

    def _look_ahead(self, now_s: float) -> None:
        """Answer those whose deadline has come, and wake up again at the scheduler's next moment."""
        for entry in self._scheduler.expire(now_s):
            if (submission := self._owners.get(entry)) is not None:
                self._fail(submission, DeadlineError(waited_s=now_s - entry.arrival_s))
        moment_s = self._scheduler.next_event_s(now_s)
        if moment_s is None or moment_s >= self._timer_s:
            return  # A timer that fires too early only looks again.
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = moment_s
        delay_s = max(0.0, moment_s - self._clock()) + _TIMER_SLACK_S
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self._on_timer, context=self._context)

    def _on_timer(self) -> None:
        self._timer, self._timer_s = None, inf
        self._notify()


async def _attempt(runner: Runner, composed: Pass) -> RunResult | Exception:
    """Run a pass; what goes wrong is returned, so that it ends at the callers and not in the slot."""
    try:
        result = await runner.run(
            [entry.payload for entry in composed.entries],
            is_urgent=composed.is_urgent,
            may_interrupt=composed.may_interrupt,
        )
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not ours: the runner cancelled something of its own under the pass.
        lost = RunnerLostError("the runner cancelled the pass")
        lost.__cause__ = error
        return lost
    except Exception as error:
        return error
    if len(result.results) != len(composed.entries):
        return ValueError(
            f"the runner gave {len(result.results)} results for {len(composed.entries)} payloads"
        )
    return result
