"""How late the loop is, told on a clock of the tests."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from app.lag import INTERVAL_S, MAX_LAG_S, LagWatch, watching_lag
from app.metrics import Metrics
from tests.app.fakes import Gateway


@dataclass
class Loop:
    """Rings a timer when a test says so."""

    now_s: float = 100.0
    due_s: float = 0.0
    ring: Callable[[], None] | None = None
    told: list[float] = field(default_factory=list[float])

    def call_later(self, delay_s: float, ring: Callable[[], None]) -> Any:
        self.due_s, self.ring = self.now_s + delay_s, ring
        return self

    def cancel(self) -> None:
        self.ring = None

    def ring_late(self, lag_s: float) -> list[float]:
        """What is told when the timer rings so late."""
        assert self.ring is not None
        self.told.clear()
        self.now_s = self.due_s + lag_s
        self.ring()
        return self.told.copy()


def watch(loop: Loop) -> LagWatch:
    return LagWatch(loop.told.append, call_later=cast("Any", loop.call_later), clock=lambda: loop.now_s)


def test_each_ring_is_told_by_how_late_it_was():
    loop = Loop()
    watch(loop)
    assert loop.ring_late(0.002) == pytest.approx([0.002])
    assert loop.ring_late(0.0) == pytest.approx([0.0])


def test_a_ring_that_came_early_was_not_late():
    """uvloop's timers are of whole milliseconds."""
    loop = Loop()
    watch(loop)
    assert loop.ring_late(-0.0009) == [0.0]


def test_a_stall_counts_for_as_long_as_it_was():
    """Told once, a second of standing still would be one in twenty, and a p95 would not see it."""
    loop = Loop()
    watch(loop)
    told = loop.ring_late(0.23)
    assert told == pytest.approx([0.23, 0.18, 0.13, 0.08, 0.03])


def test_a_machine_that_was_suspended_is_not_counted_for_hours():
    loop = Loop()
    watch(loop)
    told = loop.ring_late(1e6)
    assert max(told) == MAX_LAG_S
    assert len(told) <= MAX_LAG_S / INTERVAL_S + 1


def test_a_watch_that_was_stopped_does_not_ring():
    loop = Loop()
    watch(loop).stop()
    assert loop.ring is None


async def test_a_real_loop_is_watched_while_the_application_lives():
    metrics = Metrics()
    has_rung = asyncio.Event()
    observe = metrics.event_loop_lag.observe

    def tell(lag_s: float) -> None:
        observe(lag_s)
        has_rung.set()

    metrics.event_loop_lag.observe = tell
    gateway = Gateway(metrics=metrics)
    async with gateway.app.lifespan(), asyncio.timeout(10):
        await has_rung.wait()
    assert metrics.registry.get_sample_value("laneway_event_loop_lag_seconds_count") >= 1


async def test_nothing_rings_after_the_block():
    told: list[float] = []
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    loop.call_later = lambda *given: timers.append(call_later(*given)) or timers[-1]
    async with watching_lag(told.append):
        pass
    assert [timer.cancelled() for timer in timers] == [True]
