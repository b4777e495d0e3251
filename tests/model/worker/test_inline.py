"""The worker without a process keeps the promises of the one with a process."""

import asyncio
import os
import threading

import pytest

from model.errors import CheckpointError, PassFailedError, PassOutOfMemoryError, WorkerDiedError
from model.worker import InlineWorker, LoadOptions
from tests.model.worker.fakes import (
    BROKEN,
    BUGGY,
    LOADER,
    NOT_FINITE,
    OUT_OF_MEMORY,
    RAISE,
    SECRET,
    features_of,
)


@pytest.fixture
async def worker(options: LoadOptions, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    worker = InlineWorker(options, loader=LOADER)
    yield worker
    await worker.stop()


async def test_it_loads_tells_its_stages_and_answers(worker):
    stages: list[tuple[str, threading.Thread]] = []
    info = await worker.start(lambda text: stages.append((text, threading.current_thread())))
    assert stages == [("reading", threading.current_thread()), ("warming up", threading.current_thread())]
    assert info.source == "fake"
    await worker.wait_ready()
    result = await worker.run([features_of(5, 6, num_prompt_tokens=1), features_of(NOT_FINITE)])
    assert result.rows[0].tolist() == [5, 2, 1, 11]
    assert result.nonfinite_rows == (1,)
    statistics = worker.statistics()
    assert (statistics.is_ready, statistics.pid, statistics.num_passes) == (True, os.getpid(), 1)
    assert repr(worker) == "<InlineWorker fake: ready, 1 passes>"


async def test_a_checkpoint_that_cannot_be_loaded_is_said_in_the_loaders_words(worker, tmp_path):
    (tmp_path / BROKEN).write_text("no such folder")
    with pytest.raises(CheckpointError, match=r"^no such folder$"):
        await worker.start(lambda _: None)
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        await worker.wait_ready()


async def test_any_other_exception_at_load_is_one_line(worker, tmp_path):
    (tmp_path / BUGGY).write_text("shape\nmismatch")
    with pytest.raises(CheckpointError, match=r"^cannot load fake: RuntimeError: shape mismatch$"):
        await worker.start(lambda _: None)


async def test_an_exception_under_a_pass_tells_its_type_and_nothing_else(worker, caplog):
    await worker.start(lambda _: None)
    await worker.run([features_of(1)])
    with pytest.raises(PassFailedError) as caught:
        await worker.run([features_of(RAISE)])
    assert str(caught.value) == "the encoder raised KeyError in pass 2 (1 inputs, 1 tokens)"
    assert (caught.value.pid, caught.value.pass_id) == (os.getpid(), 2)
    (record,) = caplog.records
    assert record.getMessage() == "pass 2 failed (1 inputs)"
    assert record.fields == {"pid": os.getpid(), "pass": 2}
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    with pytest.raises(PassOutOfMemoryError, match="the encoder raised MemoryError"):
        await worker.run([features_of(OUT_OF_MEMORY)])
    assert (await worker.run([features_of(3)])).rows.tolist() == [[3, 1, 0, 3]]


async def test_a_pass_before_the_start_or_after_the_stop_is_refused(worker):
    with pytest.raises(WorkerDiedError, match="the worker is not ready: starting"):
        await worker.run([features_of(1)])
    await worker.start(lambda _: None)
    await worker.stop()
    with pytest.raises(WorkerDiedError, match="the worker is not ready: stopped"):
        await worker.run([features_of(1)])


async def test_a_stop_abandons_passes_with_an_error(worker):
    await worker.start(lambda _: None)
    passes = [asyncio.create_task(worker.run([features_of(n)])) for n in range(3)]
    await asyncio.sleep(0)  # the tasks hand their passes over
    await worker.stop()
    for outcome in await asyncio.gather(*passes, return_exceptions=True):
        assert isinstance(outcome, WorkerDiedError)
        assert str(outcome) == "the worker was stopped"
