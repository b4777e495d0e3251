"""What is told of workers, with real processes that are killed: counters never go back, gauges are of now."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engine import EngineStatistics
from app.metrics import Metrics
from batching import Lane
from model import PassOutOfMemoryError, PassResult, WorkerDiedError
from model.worker import LoadOptions, ProcessWorker
from tests.app.fakes import FakeEngine, Gateway
from tests.app.test_engine import FakeWorker, serving, texts
from tests.model.worker.fakes import (
    ALLOCATED_BYTES,
    CARD,
    LOADER,
    LOST_DEVICE,
    OUT_OF_MEMORY,
    PEAK_BYTES,
    RESERVED_BYTES,
    features_of,
)
from tests.model.worker.processes import TIMEOUT_S

COUNTERS = (
    "laneway_worker_restarts_total",
    "laneway_worker_passes_total",
    "laneway_worker_out_of_memory_passes_total",
    "laneway_device_busy_seconds_total",
)


class EngineOfProcesses(FakeEngine):
    """Tells what real workers tell."""

    def __init__(self, workers: Sequence[ProcessWorker]) -> None:
        super().__init__()
        self._workers = workers

    def statistics(self) -> EngineStatistics:
        workers = tuple(worker.statistics() for worker in self._workers)
        return replace(super().statistics(), workers=workers)


@pytest.fixture
async def workers(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[list[ProcessWorker]]:
    """Two workers, each in a process, on the device that the test names."""
    device: str = getattr(request, "param", "cpu")
    if device != "cpu":
        (tmp_path / LOST_DEVICE).touch()  # brings a stand-in for torch along
    options = LoadOptions(folder=str(tmp_path), source="fake", device=device)
    both = [ProcessWorker(options, loader=LOADER) for _ in range(2)]
    try:
        for worker in both:
            await worker.start(lambda _stage: None)
        yield both
    finally:
        for worker in both:
            await worker.stop()


def told(gateway: Gateway, name: str) -> dict[str, float]:
    """A metric's values by worker."""
    return {
        sample.labels["worker"]: sample.value
        for metric in gateway.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == name
    }


async def work(worker: ProcessWorker, num_passes: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await worker.wait_ready()
        for _ in range(num_passes):
            await worker.run([features_of(1, 2), features_of(3)])


async def kill(worker: ProcessWorker) -> None:
    """End its process, and wait until another one has taken its place."""
    pid = worker.statistics().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(TIMEOUT_S):
        # A killed process answers nothing, so this tells when the gateway knows that it is gone.
        with pytest.raises(WorkerDiedError):
            await worker.run([features_of(1)])
        await worker.wait_ready()


async def test_what_a_worker_has_done_outlives_its_process(workers: list[ProcessWorker]):
    gateway = Gateway(EngineOfProcesses(workers))
    await work(workers[0], 3)
    await work(workers[1], 1)
    with pytest.raises(PassOutOfMemoryError):
        await workers[0].run([features_of(OUT_OF_MEMORY)])
    before = {name: told(gateway, name) for name in COUNTERS}
    assert before["laneway_worker_passes_total"] == {"0": 3, "1": 1}
    assert before["laneway_worker_out_of_memory_passes_total"] == {"0": 1, "1": 0}
    assert before["laneway_device_busy_seconds_total"]["0"] > 0

    await kill(workers[0])
    after = {name: told(gateway, name) for name in COUNTERS}
    assert after == {**before, "laneway_worker_restarts_total": {"0": 1, "1": 0}}

    await work(workers[0], 2)
    assert told(gateway, "laneway_worker_passes_total") == {"0": 5, "1": 1}
    busy_s = told(gateway, "laneway_device_busy_seconds_total")
    assert busy_s["0"] > before["laneway_device_busy_seconds_total"]["0"]
    assert busy_s["1"] == before["laneway_device_busy_seconds_total"]["1"]


async def test_the_memory_that_is_told_is_that_of_the_process_that_lives(workers: list[ProcessWorker]):
    gateway = Gateway(EngineOfProcesses(workers))
    assert all(value > 0 for value in told(gateway, "laneway_worker_resident_memory_bytes").values())
    await workers[0].stop()
    assert set(told(gateway, "laneway_worker_resident_memory_bytes")) == {"1"}
    assert told(gateway, "laneway_worker_ready") == {"0": 0, "1": 1}


@pytest.mark.parametrize("workers", ["cuda:1"], indirect=True)
async def test_what_a_card_holds_comes_with_the_workers_answers(workers: list[ProcessWorker]):
    """One scrape of the gateway tells of all cards: the gateway itself has no torch."""
    gateway = Gateway(EngineOfProcesses(workers))

    def memory() -> list[dict[str, float]]:
        names = ("allocated", "reserved", "peak_allocated")
        return [told(gateway, f"laneway_torch_memory_{name}_bytes") for name in names]

    expected: list[dict[str, Any]] = [
        dict.fromkeys(("0", "1"), value) for value in (ALLOCATED_BYTES, RESERVED_BYTES, PEAK_BYTES)
    ]
    assert memory() == expected  # from loading, before the first pass
    await work(workers[0], 1)
    await kill(workers[0])
    assert memory() == expected
    on_card = {"model": "tiny", "worker": "0", "device": "cuda:1", "gpu_uuid": f"GPU-{CARD}"}
    assert gateway.sample("laneway_worker_info", **on_card) == 1
    await workers[0].stop()
    assert memory() == [{"1": value["1"]} for value in expected]


async def test_on_a_cpu_no_metric_of_a_card_is_named(workers: list[ProcessWorker]):
    gateway = Gateway(EngineOfProcesses(workers))
    await work(workers[0], 1)
    assert b"laneway_torch" not in (await gateway.get("/metrics")).body


# Through the engine ----------------------------------------------------------------------------------------


class PaddingWorker(FakeWorker):
    """Pads every pass by one token."""

    async def run(self, *given: Any, **how: Any) -> PassResult:
        return replace(await super().run(*given, **how), num_padding_tokens=1)


async def test_what_the_engine_knows_of_its_work_is_told(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    metrics = Metrics()
    seconds = itertools.count(step=0.25)
    async with serving(
        tmp_path, PaddingWorker(), on_pass=metrics.observe_pass, clock=lambda: next(seconds)
    ) as engine:
        metrics.watch(engine)
        answer = await engine.embed(texts("one", "two one"), lane=Lane.QUERY, timeout_s=None)
        await asyncio.sleep(0)  # Whoever waits for rows comes first.
        told = {
            sample.name: sample.value
            for metric in metrics.registry.collect()
            for sample in metric.samples
            if set(sample.labels) == {"model"}
        }
        figures = engine.statistics().cost
    assert told["laneway_pass_padding_ratio_sum"] == 1 / 4
    assert told["laneway_model_load_seconds"] > 0
    assert told["laneway_cost_fixed_seconds"] == figures.fixed_s
    assert answer.prepare_s > 0
