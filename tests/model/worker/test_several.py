"""Several passes out at once: which runs first, what may run in the middle of what, and what a death tells."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine

import numpy as np
import pytest
import uvloop

from model.errors import PassFailedError, PassNotBegunError, PassOutOfMemoryError, WorkerDiedError
from model.types import Features, PassResult
from model.worker import LoadOptions, ProcessWorker, WorkerState, child
from tests.model.worker.conftest import children
from tests.model.worker.fakes import (
    DEVICE_ASSERT,
    GO_ON,
    HANG,
    LOADER,
    LOST_DEVICE,
    OUT_OF_MEMORY,
    OUT_OF_MEMORY_INSIDE,
    RAISE,
    RUNNING,
    UNTIL_INTERRUPTED,
    UNTIL_TOLD,
    features_of,
)
from tests.model.worker.processes import TIMEOUT_S


def ignore_stage(_: str) -> None:
    pass


async def handed_over(run: Coroutine[object, object, PassResult]) -> "asyncio.Task[PassResult]":
    """A pass that was sent."""
    task = asyncio.create_task(run)
    await asyncio.sleep(0)  # the task hands its pass over
    return task


@pytest.fixture
async def interruptible(process_worker, fifo):
    """A worker in the middle of a document's pass that ends when so many passes have interrupted it."""
    running = fifo(RUNNING)
    worker = process_worker()
    await worker.start(ignore_stage)

    async def begin(num_interruptions: int) -> "tuple[ProcessWorker, asyncio.Task[PassResult]]":
        document = await handed_over(worker.run([features_of(UNTIL_INTERRUPTED, num_interruptions)]))
        await running.signalled()
        return worker, document

    return begin


def query(worker: ProcessWorker, *token_ids: int) -> Coroutine[object, object, PassResult]:
    return worker.run([features_of(*token_ids)], is_urgent=True, may_interrupt=True)


# Passes in the middle of passes


async def test_a_query_is_answered_in_the_middle_of_a_document(interruptible):
    worker, document = await interruptible(2)
    first = await query(worker, 5, 6)
    assert first.rows.tolist() == [[5, 2, 0, 11]]
    assert not document.done()
    assert worker.state is WorkerState.RUNNING
    assert (first.num_interruptions, first.interrupted_s) == (0, 0.0)
    await query(worker, 7)
    result = await document
    assert result.rows.tolist() == [[UNTIL_INTERRUPTED, 2, 0, UNTIL_INTERRUPTED + 2]]
    assert result.num_interruptions == 2
    assert result.interrupted_s > 0
    assert result.device_s > 0
    assert worker.state is WorkerState.READY


async def test_a_flood_of_queries_is_answered_and_the_document_goes_on(interruptible):
    worker, document = await interruptible(200)
    results = await asyncio.gather(*(query(worker, n) for n in range(200)))
    assert [result.rows[0, 0] for result in results] == list(range(200))
    assert (await document).num_interruptions == 200


async def test_what_goes_wrong_inside_does_no_harm_around_it(interruptible):
    worker, document = await interruptible(2)
    with pytest.raises(PassFailedError, match=r"the encoder raised KeyError in pass 2 \(1 inputs"):
        await query(worker, RAISE)
    assert (await query(worker, 5)).rows[0, 0] == 5
    assert (await document).num_interruptions == 2


async def test_what_finds_no_room_beside_another_runs_alone_after_it(interruptible):
    """The document holds memory that the query gets when it is done; smaller passes would not help sooner."""
    worker, document = await interruptible(1)
    late = await handed_over(query(worker, OUT_OF_MEMORY_INSIDE))
    assert (await document).num_interruptions == 1
    assert (await late).rows[0, 0] == OUT_OF_MEMORY_INSIDE

    with pytest.raises(PassOutOfMemoryError):
        await query(worker, OUT_OF_MEMORY)


async def test_a_device_that_is_lost_inside_is_lost_around_it(options, tmp_path, fifo, capfd):
    (tmp_path / LOST_DEVICE).touch()
    running = fifo(RUNNING)
    worker = ProcessWorker(LoadOptions(folder=options.folder, source="fake", device="cuda:0"), loader=LOADER)
    await worker.start(ignore_stage)
    document = await handed_over(worker.run([features_of(UNTIL_INTERRUPTED, 1)]))
    await running.signalled()
    lost = await asyncio.gather(query(worker, DEVICE_ASSERT), document, return_exceptions=True)
    await worker.stop()
    for error in lost:
        assert isinstance(error, WorkerDiedError)
        assert "exited with code 70 (its device is in an error state)" in str(error)
    assert "cuda:0 fails every call from here on" in capfd.readouterr().err


async def test_thirty_megabytes_of_pixels_do_not_hold_a_query_up(interruptible):
    """They wait for their turn in a socket of their own, and come whole nevertheless."""
    worker, document = await interruptible(1)
    pixels = np.arange(30_000_000, dtype=np.uint8).reshape(2_000, 5_000, 3)
    image = Features(token_ids=np.array([3, 4], dtype=np.int32), images=(pixels,), num_image_tokens=1)
    staged = await handed_over(worker.run([image]))
    assert (await query(worker, 5)).rows[0, 0] == 5
    assert not staged.done()
    assert (await document).num_interruptions == 1
    assert (await staged).rows.tolist() == [[3, 2, 0, 7]]


async def test_a_large_query_is_read_to_its_end_and_interrupts(interruptible):
    worker, document = await interruptible(1)
    image = Features(
        token_ids=np.array([3, 4], dtype=np.int32),
        images=(np.zeros((1_000, 1_000, 3), dtype=np.uint8),),
        num_image_tokens=1,
    )
    result = await worker.run([image], is_urgent=True, may_interrupt=True)
    assert result.rows.tolist() == [[3, 2, 0, 7]]
    assert (await document).num_interruptions == 1


# Order


async def test_urgent_passes_run_before_staged_ones_and_each_kind_in_its_order(process_worker, fifo):
    running, go_on = fifo(RUNNING), fifo(GO_ON)
    worker = process_worker()
    await worker.start(ignore_stage)
    order: list[str] = []

    async def run(name: str, *token_ids: int, is_urgent: bool = False) -> None:
        await worker.run([features_of(*token_ids)], is_urgent=is_urgent)
        order.append(name)

    tasks = [asyncio.create_task(run("running", UNTIL_TOLD))]
    await running.signalled()
    tasks += [
        asyncio.create_task(run("staged", 1)),
        asyncio.create_task(run("urgent", 2, is_urgent=True)),
        asyncio.create_task(run("staged behind it", 3)),
        asyncio.create_task(run("second urgent", 4, is_urgent=True)),
    ]
    await asyncio.sleep(0)  # the tasks hand their passes over
    go_on.signal()
    await asyncio.gather(*tasks)
    assert order == ["running", "urgent", "second urgent", "staged", "staged behind it"]


async def test_an_urgent_pass_is_not_interrupted_itself(process_worker, fifo):
    """Else queries would wait for queries that came later."""
    running, go_on = fifo(RUNNING), fifo(GO_ON)
    worker = process_worker()
    await worker.start(ignore_stage)
    first = await handed_over(query(worker, UNTIL_TOLD))
    await running.signalled()
    second = await handed_over(query(worker, 5))
    go_on.signal()
    assert (await first).num_interruptions == 0
    assert (await second).rows[0, 0] == 5


async def test_a_pass_whose_caller_left_is_computed_for_nobody(process_worker, fifo):
    running, go_on = fifo(RUNNING), fifo(GO_ON)
    worker = process_worker()
    await worker.start(ignore_stage)
    first = await handed_over(worker.run([features_of(UNTIL_TOLD)]))
    await running.signalled()
    leaving = await handed_over(worker.run([features_of(1)]))
    staying = await handed_over(worker.run([features_of(2)]))
    leaving.cancel()
    go_on.signal()
    assert (await first).rows[0, 0] == UNTIL_TOLD
    assert (await staying).rows[0, 0] == 2
    assert worker.statistics().num_passes == 3


# Ends


async def test_of_three_passes_that_are_out_a_death_blames_those_that_can_have_begun(process_worker, fifo):
    """The third is tried again without a stain; cut into halves for another's fault, it would take longer."""
    running = fifo(RUNNING)
    worker = process_worker()
    await worker.start(ignore_stage)
    hanging = await handed_over(worker.run([features_of(HANG, 1, 2)]))
    await running.signalled()
    staged = await handed_over(worker.run([features_of(1)]))
    urgent = await handed_over(query(worker, 1, 2))
    pid = worker.statistics().pid
    os.kill(pid, signal.SIGKILL)
    errors = await asyncio.gather(hanging, urgent, staged, return_exceptions=True)
    assert [type(error) for error in errors] == [WorkerDiedError, WorkerDiedError, PassNotBegunError]
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).endswith("during pass 1 (1 inputs, 3 tokens) or pass 3 (1 inputs, 2 tokens)")
    assert [(error.pid, error.pass_id) for error in errors] == [(pid, 1), (pid, 3), (pid, 2)]
    assert str(errors[2]) == "the worker process died before the pass was run"
    await worker.wait_ready()
    assert (await worker.run([features_of(1)])).rows[0, 0] == 1


async def test_what_was_answered_before_the_end_is_not_lost(interruptible):
    """A query's rows may be in the socket when the process dies over the document."""
    worker, document = await interruptible(2)
    answered = await query(worker, 5)
    os.kill(worker.statistics().pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"during pass 1 \(1 inputs, 2 tokens\)$"):
        await document
    assert answered.rows[0, 0] == 5


async def test_a_stop_fails_every_pass_that_is_out(process_worker, fifo):
    running = fifo(RUNNING)
    worker = process_worker()
    await worker.start(ignore_stage)
    hanging = await handed_over(worker.run([features_of(HANG)]))
    await running.signalled()
    staged = await handed_over(worker.run([features_of(1)]))
    urgent = await handed_over(query(worker, 2))
    await worker.stop()
    for error in await asyncio.gather(hanging, staged, urgent, return_exceptions=True):
        assert isinstance(error, WorkerDiedError)
    assert children() == []


def worker_that_answers(answer: str) -> str:
    """Source of a process that is ready at once, and gives this answer to the first pass."""
    return f"""\
import json, socket, sys
sys.path[:] = json.loads(sys.argv[2])
from model.worker import frames
from tests.model.worker.fakes import fake_info
gateway = socket.socket(fileno=json.loads(sys.argv[1])[0])
gateway.recv(65536)
gateway.sendall(frames.pack_head(frames.Ready(info=fake_info())))
gateway.recv(65536)
gateway.sendall({answer})
gateway.recv(65536)
"""


def rows_frame(**changes: object) -> str:
    rows = {
        "pass_id": 1,
        "num_rows": 1,
        "dimension": 4,
        "device_s": 0.0,
        "nonfinite_rows": (),
        **changes,
    }
    return f"frames.pack_head(frames.Rows(**{rows}), body_bytes=16) + bytes(16)"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (rows_frame(pass_id=7), "pass 7 was answered, but is not out"),
        (
            rows_frame(num_rows=2, dimension=2),
            r"rows of shape \(2, 2\) are no answer to pass 1 \(1 inputs, 1 tokens\), which gives \(1, 4\)",
        ),
        (rows_frame(nonfinite_rows=(1,)), r"rows \(1,\) of 1 are said to be not finite"),
        ("frames.pack_head(frames.Stage(text='reading'))", "a ready worker sent Stage"),
        ("b'HTTP/1.1 400 Bad Request'", "a frame starts with b'LNW1', this one with b'HTTP'"),
    ],
)
async def test_an_answer_to_something_else_ends_the_process(process_worker, monkeypatch, answer, complaint):
    """Rows given to the wrong inputs are worse than none."""
    monkeypatch.setattr(child, "_BOOTSTRAP", worker_that_answers(answer))
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(WorkerDiedError, match=rf"sent what is no answer \({complaint}\) during pass 1"):
        await worker.run([features_of(1)])


# Another loop


def on_uvloop(main: Callable[[], Coroutine[object, object, None]]) -> None:
    uvloop.run(main())
    assert children() == []


def test_interruptions_work_on_uvloop_too(options, tmp_path):
    os.mkfifo(tmp_path / RUNNING)

    async def main() -> None:
        worker = ProcessWorker(options, loader=LOADER)
        await worker.start(ignore_stage)
        document = await handed_over(worker.run([features_of(UNTIL_INTERRUPTED, 1)]))
        await asyncio.to_thread((tmp_path / RUNNING).read_bytes)
        pixels = np.zeros((2_000, 5_000, 3), dtype=np.uint8)
        image = Features(token_ids=np.array([3, 4], dtype=np.int32), images=(pixels,), num_image_tokens=1)
        staged = await handed_over(worker.run([image]))
        async with asyncio.timeout(TIMEOUT_S):
            assert (await query(worker, 5)).rows[0, 0] == 5
            assert (await document).num_interruptions == 1
            assert (await staged).rows[0, 0] == 3
        await worker.stop()

    on_uvloop(main)


def test_a_gateway_that_stood_still_does_not_take_its_worker_for_hung(options):
    """After a suspended night every timer rings; the answers lie in the sockets and are read first."""

    async def main() -> None:
        worker = ProcessWorker(options, pass_timeout_s=0.2, loader=LOADER)
        await worker.start(ignore_stage)
        pid = worker.statistics().pid
        answer = await handed_over(worker.run([features_of(5)]))
        threading.Event().wait(0.3)  # the loop stands still, past the deadline
        assert (await answer).rows[0, 0] == 5
        assert (await worker.run([features_of(6)])).rows[0, 0] == 6
        assert worker.statistics().pid == pid
        await worker.stop()

    on_uvloop(main)
