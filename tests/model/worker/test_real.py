"""The real loader in real processes: torch, weights, the whole way."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from model.checkpoint import find_checkpoint
from model.encoder import TransformerEncoder
from model.errors import CheckpointError, WorkerDiedError
from model.worker import InlineWorker, LoadOptions, ProcessWorker, WorkerState
from tests.model import gme_cases
from tests.model.checkpoints import build_checkpoint
from tests.model.worker.fakes import features_of
from tests.model.worker.processes import mapped_bytes, pss_bytes

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

QUERY = features_of(101, 2129, 2024, 1037, 3231, 102)
DOCUMENT = features_of(101, *range(2000, 2100), 102)
QUERY_OF_A_TINY_MODEL = features_of(2, 7, 8, 3)


@pytest.fixture(scope="module")
def options() -> LoadOptions:
    # Prepacked layers are copies; what is looked at here are the pages of the file.
    return LoadOptions(folder=str(find_checkpoint("minilm").folder), source="minilm", max_prepacked_bytes=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(options: LoadOptions) -> AsyncIterator[list[ProcessWorker]]:
    workers = [ProcessWorker(options) for _ in range(2)]
    await asyncio.gather(*(worker.start(lambda _: None) for worker in workers))
    yield workers
    for worker in workers:
        await worker.stop()


async def test_workers_share_the_pages_of_the_weights(workers):
    """A worker a core would be too dear if each held a copy of its own."""
    for worker in workers:
        await worker.run([DOCUMENT])
    for worker in workers:
        statistics = worker.statistics()
        assert statistics.pid is not None
        resident, proportional = mapped_bytes(statistics.pid, "model.safetensors")
        # 90.9 MB of weights; the rarely used rows of the token embedding need not be in memory.
        assert resident > 40_000_000
        assert proportional <= resident * 0.55
        assert pss_bytes(statistics.pid) < statistics.rss_bytes


async def test_every_worker_gives_the_same_rows(workers, options):
    rows = [(await worker.run([QUERY, DOCUMENT])).rows for worker in workers]
    inline = InlineWorker(options)
    await inline.start(lambda _: None)
    rows.append((await inline.run([QUERY, DOCUMENT])).rows)
    await inline.stop()
    assert rows[0].shape == (2, 384)
    assert np.linalg.norm(rows[0], axis=1) == pytest.approx([1.0, 1.0], abs=1e-6)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)


async def test_a_query_runs_in_the_middle_of_a_long_document_pass(workers):
    """And neither has a bit changed by it."""
    worker = workers[0]
    documents, alone = [DOCUMENT] * 40, (await worker.run([QUERY])).rows
    undisturbed = (await worker.run(documents)).rows
    passes = asyncio.create_task(worker.run(documents))
    await asyncio.sleep(0)  # the task hands its pass over
    queries = 0
    while not passes.done():
        # The first may come to the worker together with the documents, and go before them.
        result = await worker.run([QUERY], is_urgent=True, may_interrupt=True)
        np.testing.assert_array_equal(result.rows, alone)
        queries += 1
    result = await passes
    np.testing.assert_array_equal(result.rows, undisturbed)
    assert 1 <= result.num_interruptions <= queries
    assert 0 < result.interrupted_s < result.device_s


async def test_a_killed_worker_comes_back_with_the_same_vectors(workers):
    worker = workers[0]
    before = (await worker.run([QUERY])).rows
    # Some seconds of work, so that the signal comes while it is done.
    doomed = asyncio.create_task(worker.run([DOCUMENT] * 400))
    await asyncio.sleep(0)  # the task hands its pass over
    os.kill(worker.statistics().pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="was killed by SIGKILL"):
        await doomed
    await worker.wait_ready()
    np.testing.assert_array_equal((await worker.run([QUERY])).rows, before)


async def test_a_worker_never_comes_back_with_other_weights(tmp_path: Path, caplog):
    """A checkpoint that is fetched anew under a running server looks the same but for its numbers."""
    folder = build_checkpoint(tmp_path, "bert")
    weights, kept = folder / "model.safetensors", folder / "kept"

    async def put_back(_: float) -> None:
        assert worker.state is WorkerState.RESTARTING
        kept.replace(weights)

    worker = ProcessWorker(LoadOptions(folder=str(folder), source="tiny"), sleep=put_back)
    await worker.start(lambda _: None)
    before = (await worker.run([QUERY_OF_A_TINY_MODEL])).rows
    # Renamed, not overwritten: the process has the file mapped, and would die of the writing.
    retrained = {name: tensor * 1.25 for name, tensor in load_file(weights).items()}
    weights.replace(kept)
    save_file(retrained, weights, metadata={"format": "pt"})
    with caplog.at_level(logging.ERROR):
        os.kill(worker.statistics().pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError):
            await worker.run([QUERY_OF_A_TINY_MODEL])
        await worker.wait_ready()
    np.testing.assert_array_equal((await worker.run([QUERY_OF_A_TINY_MODEL])).rows, before)
    assert caplog.text.count(f"the checkpoint's files in {folder} were changed") == 1
    await worker.stop()


async def test_a_folder_without_a_model_is_one_line_for_the_operator(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        await ProcessWorker(LoadOptions(folder=str(tmp_path), source="nothing")).start(lambda _: None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_texts_and_images_share_a_pass_of_a_process(gme: TransformerEncoder):
    """Pixels cross the socket, and every vector is the one of the authors' code."""
    some = [gme_cases.cases()[index] for index in (14, 0, 11, 6, 17)]  # both, text, image, text, both
    worker = ProcessWorker(LoadOptions(folder=str(gme_cases.FOLDER), source="tiny-gme"))
    info = await worker.start(lambda _: None)
    assert info == gme.info
    result = await worker.run(gme_cases.features_of(info, [case.input for case in some]))
    await worker.stop()
    expected = np.stack([case.vector for case in some])
    assert result.nonfinite_rows == ()
    assert np.abs(result.rows - expected).max() <= gme_cases.TOLERANCE
