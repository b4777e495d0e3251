"""Stand-ins for time and for devices: an event loop whose clock jumps, and a runner that computes nothing.

No test here sleeps. On the ``VirtualLoop`` a wait of an hour takes no time, and a wait for something that
can never happen is an error at once instead of a hanging test.
"""

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import Phase

from batching import CostModel, Entry, Lane, Limits, RunnerLostError, RunResult, Shape, WorkItem

T = TypeVar("T")

PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)
"""To explain a failure hypothesis traces every line that runs, which takes twenty times as long."""

FIXED_S = 0.010
PER_TOKEN_S = 0.001


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, puts the clock forward by the time that would have been waited."""

    now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits for something that will never happen")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def on_virtual_time(main: Callable[[], Coroutine[object, object, T]]) -> T:
    """Run a coroutine on a clock that jumps; what the loop would only log is an error."""
    logged: list[dict[str, object]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: logged.append(context))
        result = runner.run(main())
    assert not logged, logged
    return result


def now_s() -> float:
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, kw_only=True)
class Item:
    """A payload with its fate."""

    name: str = "text"
    num_tokens: int = 10
    raises: bool = False
    """Any pass that holds it raises."""
    kills: bool = False
    """Any runner that runs it dies."""
    is_bad: bool = False
    """Its own result is an exception; its neighbours are fine."""

    def work(self) -> WorkItem:
        return WorkItem(payload=self, num_tokens=self.num_tokens)


class FakeRunner:
    """Takes as long as the tests' cost model says. Dies when told, and is back after ``restart_s``.

    With another ``pace`` it takes so many times as long, which nobody expects before it is seen.
    """

    depth = 1
    can_interrupt = False

    def __init__(self, *, dies_at: Collection[int] = (), restart_s: float = 1.0, pace: float = 1.0) -> None:
        self.passes: list[list[str]] = []
        self._pace = pace
        self._dies_at = dies_at
        self._restart_s = restart_s
        self._is_ready = asyncio.Event()
        self._is_ready.set()

    @property
    def is_ready(self) -> bool:
        return self._is_ready.is_set()

    async def wait_ready(self) -> None:
        await self._is_ready.wait()

    def die(self) -> None:
        """Be away for ``restart_s``, from now on."""
        self._is_ready.clear()
        asyncio.get_running_loop().call_later(self._restart_s, self._is_ready.set)

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        assert not is_urgent, "a simple runner has nothing to overtake"
        assert not may_interrupt
        assert self._is_ready.is_set(), "a pass was sent to a runner that is not ready"
        items = [payload for payload in payloads if isinstance(payload, Item)]
        device_s = self._pace * pass_s(sum(item.num_tokens for item in items))
        self.passes.append([item.name for item in items])
        await asyncio.sleep(device_s)
        if len(self.passes) - 1 in self._dies_at or any(item.kills for item in items):
            self.die()
            raise RunnerLostError("the runner died")
        if any(item.raises for item in items):
            raise ArithmeticError("the model raised")
        return RunResult(
            results=[ValueError(item.name) if item.is_bad else f"vector of {item.name}" for item in items],
            device_s=device_s,
        )


@dataclass(eq=False)
class _Job:
    items: list[Item]
    is_urgent: bool
    may_interrupt: bool
    rest_s: float
    done: asyncio.Future[None]


class LayeredFake(FakeRunner):
    """Takes a pass ahead, and urgent ones before it; may let those in between two blocks of 10 ms.

    What it was told and when each pass began stands in ``log``. A pass that dies takes all others along.
    """

    depth = 2

    def __init__(self, *, can_interrupt: bool = True, dies_at: Collection[int] = (), restart_s: float = 1.0):
        super().__init__(dies_at=dies_at, restart_s=restart_s)
        self.can_interrupt = can_interrupt
        self.log: list[tuple[str, float]] = []
        self._staged: list[_Job] = []
        self._urgent: list[_Job] = []
        self._stack: list[_Job] = []
        self._device: asyncio.Task[None] | None = None

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        assert self._is_ready.is_set(), "a pass was sent to a runner that is not ready"
        assert len(self._staged) + len(self._urgent) + len(self._stack) < 3, "more than it can take"
        assert self.can_interrupt or not may_interrupt
        items = [payload for payload in payloads if isinstance(payload, Item)]
        device_s = pass_s(sum(item.num_tokens for item in items))
        done = asyncio.get_running_loop().create_future()
        job = _Job(items, is_urgent, may_interrupt, device_s, done)
        self.log.append((f"{'urgent ' if is_urgent else ''}{items[0].name} handed", now_s()))
        (self._urgent if is_urgent else self._staged).append(job)
        if self._device is None:
            self._device = asyncio.create_task(self._work())
        try:
            await done
        finally:
            for line in (self._staged, self._urgent, self._stack):
                if job in line:
                    line.remove(job)
        results = [ValueError(item.name) if item.is_bad else f"vector of {item.name}" for item in items]
        return RunResult(results=results, device_s=device_s)

    async def _work(self) -> None:
        while (job := self._next()) is not None:
            block_s = 0.010 if self.can_interrupt and not job.is_urgent else job.rest_s
            block_s = min(block_s, job.rest_s)
            await asyncio.sleep(block_s)
            job.rest_s -= block_s
            if job.rest_s <= 1e-9:
                self._end(job)
        self._device = None

    def _next(self) -> _Job | None:
        if self._stack:
            if not self._stack[-1].is_urgent and self._urgent and self._urgent[0].may_interrupt:
                self._begin(self._urgent)
        elif self._urgent or self._staged:
            self._begin(self._urgent or self._staged)
        return self._stack[-1] if self._stack else None

    def _begin(self, line: list[_Job]) -> None:
        job = line.pop(0)
        self._stack.append(job)
        self.passes.append([item.name for item in job.items])
        self.log.append((f"{job.items[0].name} begins", now_s()))

    def _end(self, job: _Job) -> None:
        self._stack.remove(job)
        if len(self.passes) - 1 in self._dies_at or any(item.kills for item in job.items):
            self.die()
            begun = [job, *self._stack]
            lost = [*begun, *self._urgent, *self._staged]
            for line in (self._stack, self._urgent, self._staged):
                line.clear()
            for other in lost:
                if not other.done.done():
                    error = RunnerLostError("the runner died", has_begun=other in begun)
                    other.done.set_exception(error)
        elif job.done.done():
            return
        elif any(item.raises for item in job.items):
            job.done.set_exception(ArithmeticError("the model raised"))
        else:
            job.done.set_result(None)


def known_cost() -> CostModel:
    """The cost model that the fake runners obey, fitted from enough passes to be sure of itself."""
    cost = CostModel()
    cost.fit([(Shape(num_tokens=size), FIXED_S + PER_TOKEN_S * size) for size in range(1, 200, 10)])
    return cost


def pass_s(num_tokens: int) -> float:
    return FIXED_S + PER_TOKEN_S * num_tokens


def limits(
    *,
    max_pass_tokens: int = 100,
    fill_tokens: int = 40,
    max_document_pass_tokens: int | None = None,
    max_pass_entries: int = 16,
    max_wait_s: float = 0.0,
    quiet_after_s: float = 1.0,
    query_slo_s: float = 0.1,
    document_share: float = 0.15,
    batch_share: float = 0.05,
    interruption_share: float = 0.05,
    max_waiting_entries: int = 1_000,
    max_waiting_s: float = 100.0,
) -> Limits:
    """Small bounds, the same for all lanes; times are those of so many tokens under the known cost."""
    longest_tokens = max_document_pass_tokens or max_pass_tokens
    return Limits(
        max_pass_s=pass_s(max_pass_tokens),
        max_document_pass_s=pass_s(longest_tokens),
        fill_s=pass_s(fill_tokens) if fill_tokens else 0.0,
        max_pass_tokens=longest_tokens,
        max_pass_entries=max_pass_entries,
        max_wait_s=max_wait_s,
        quiet_after_s=quiet_after_s,
        query_slo_s=query_slo_s,
        shares={Lane.DOCUMENT: document_share, Lane.BATCH: batch_share},
        interruption_share=interruption_share,
        max_waiting_entries=dict.fromkeys(Lane, max_waiting_entries),
        max_waiting_s=dict.fromkeys(Lane, max_waiting_s),
    )


def entry(
    name: str = "text",
    *,
    lane: Lane = Lane.DOCUMENT,
    num_tokens: int = 10,
    arrival_s: float = 0.0,
    deadline_s: float | None = None,
    tenant: str = "",
) -> Entry:
    return Entry(
        payload=name,
        lane=lane,
        num_tokens=num_tokens,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
        tenant=tenant,
    )


def names(entries: Collection[Entry]) -> list[object]:
    return [entry.payload for entry in entries]
