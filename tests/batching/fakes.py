"""Stand-ins for time and for devices: an event loop whose clock jumps, and a runner that computes nothing.

No test here sleeps. On the ``VirtualLoop`` a wait of an hour takes no time, and a wait for something that
can never happen is an error at once instead of a hanging test.
"""

import asyncio
import selectors
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeVar

from batching import CostModel, Entry, Lane, Limits, RunnerLostError, RunResult, Shape, WorkItem

T = TypeVar("T")

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
    """Takes as long as the tests' cost model says. Dies when told, and is back after ``restart_s``."""

    def __init__(self, *, dies_at: Collection[int] = (), restart_s: float = 1.0) -> None:
        self.passes: list[list[str]] = []
        self._dies_at = dies_at
        self._restart_s = restart_s
        self._is_ready = asyncio.Event()
        self._is_ready.set()

    async def wait_ready(self) -> None:
        await self._is_ready.wait()

    async def run(self, payloads: Sequence[object]) -> RunResult:
        assert self._is_ready.is_set(), "a pass was sent to a runner that is not ready"
        items = [payload for payload in payloads if isinstance(payload, Item)]
        device_s = FIXED_S + PER_TOKEN_S * sum(item.num_tokens for item in items)
        self.passes.append([item.name for item in items])
        await asyncio.sleep(device_s)
        if len(self.passes) - 1 in self._dies_at or any(item.kills for item in items):
            self._is_ready.clear()
            asyncio.get_running_loop().call_later(self._restart_s, self._is_ready.set)
            raise RunnerLostError("the runner died")
        if any(item.raises for item in items):
            raise ArithmeticError("the model raised")
        return RunResult(
            results=[ValueError(item.name) if item.is_bad else f"vector of {item.name}" for item in items],
            device_s=device_s,
        )


def known_cost() -> CostModel:
    """The cost model that the fake runners obey, fitted from enough passes to be sure of itself."""
    cost = CostModel()
    cost.fit([(Shape(num_tokens=size), FIXED_S + PER_TOKEN_S * size) for size in range(1, 200, 10)])
    return cost


def limits(
    *,
    max_pass_tokens: int = 100,
    fill_tokens: int = 40,
    max_pass_entries: int = 16,
    max_wait_s: float = 0.0,
    document_share: float = 0.15,
    batch_share: float = 0.05,
    max_waiting_entries: int = 1_000,
    max_waiting_tokens: int = 100_000,
) -> Limits:
    """Small bounds, the same for all lanes."""
    return Limits(
        max_pass_tokens=max_pass_tokens,
        fill_tokens=fill_tokens,
        max_pass_entries=max_pass_entries,
        max_wait_s=max_wait_s,
        shares={Lane.DOCUMENT: document_share, Lane.BATCH: batch_share},
        max_waiting_entries=dict.fromkeys(Lane, max_waiting_entries),
        max_waiting_tokens=dict.fromkeys(Lane, max_waiting_tokens),
    )


def entry(
    name: str = "text",
    *,
    lane: Lane = Lane.DOCUMENT,
    num_tokens: int = 10,
    arrival_s: float = 0.0,
    deadline_s: float | None = None,
) -> Entry:
    return Entry(payload=name, lane=lane, num_tokens=num_tokens, arrival_s=arrival_s, deadline_s=deadline_s)


def names(entries: Collection[Entry]) -> list[object]:
    return [entry.payload for entry in entries]
