"""Real processes that die, hang and fail; every pass ends in rows or an error, and the worker comes back."""

import asyncio
import json
import logging
import os
import re
import signal

import psutil
import pytest
import uvloop

from model.errors import (
    CheckpointError,
    PassFailedError,
    PassOutOfMemoryError,
    PassTimeoutError,
    WorkerDiedError,
)
from model.worker import Backoff, LoadOptions, ProcessWorker, WorkerState
from model.worker.child import describe_exit
from tests.model.worker.conftest import children
from tests.model.worker.fakes import (
    BROKEN,
    BUGGY,
    DEADLY,
    DEVICE_ASSERT,
    DIMENSION,
    HANG,
    LOADED,
    LOADER,
    LOST_DEVICE,
    NOT_FINITE,
    OUT_OF_MEMORY,
    RAISE,
    RETRAINED,
    RUNNING,
    SECRET,
    SEGFAULT,
    STUCK,
    WRONG_SHAPE,
    features_of,
)
from tests.model.worker.processes import TIMEOUT_S


def ignore_stage(_: str) -> None:
    pass


async def assert_answers(worker: ProcessWorker) -> None:
    """The worker is ready, or becomes it, and a pass gives the right rows."""
    async with asyncio.timeout(TIMEOUT_S):
        await worker.wait_ready()
        result = await worker.run([features_of(5, 6, num_prompt_tokens=1), features_of(7)])
    assert result.rows.tolist() == [[5, 2, 1, 11], [7, 1, 0, 7]]


def pid_of(worker: ProcessWorker) -> int:
    pid = worker.statistics().pid
    assert pid is not None
    return pid


# Starting


async def test_a_start_tells_its_stages_in_order_and_gives_the_model_info(process_worker):
    stages: list[str] = []
    worker = process_worker()
    info = await worker.start(stages.append)
    assert stages == ["reading", "warming up"]
    assert (info.source, info.dimension) == ("fake", DIMENSION)
    await assert_answers(worker)


async def test_the_process_gets_its_threads_and_its_core_before_anything_loads(options):
    """OpenMP reads its variable once, when the library is loaded."""
    core = max(os.sched_getaffinity(0))
    two_threads = LoadOptions(folder=options.folder, source="fake", num_threads=2)
    worker = ProcessWorker(two_threads, loader=LOADER, cpu=core)
    info = await worker.start(ignore_stage)
    await worker.stop()
    assert info.prompts == {"OMP_NUM_THREADS": "2", "cpus": str(core)}


async def test_without_a_core_of_its_own_a_worker_may_run_on_all(process_worker):
    info = await process_worker().start(ignore_stage)
    assert info.prompts["cpus"] == ",".join(map(str, sorted(os.sched_getaffinity(0))))


async def test_a_core_that_is_not_there_is_a_warning_not_a_failure(process_worker, capfd):
    """A container may lose a core between two starts."""
    worker = process_worker(cpu=1000)
    await worker.start(ignore_stage)
    await assert_answers(worker)
    assert "cannot run on core 1000 alone" in capfd.readouterr().err


async def test_a_checkpoint_that_cannot_be_loaded_is_said_in_the_loaders_words(
    process_worker, tmp_path, capfd
):
    (tmp_path / BROKEN).write_text("fake: model.safetensors is missing; fetch the model again")
    worker = process_worker()
    with pytest.raises(CheckpointError) as caught:
        await worker.start(ignore_stage)
    assert str(caught.value) == "fake: model.safetensors is missing; fetch the model again"
    assert worker.state is WorkerState.STOPPED
    assert children() == []
    assert capfd.readouterr().err == ""


async def test_any_other_exception_at_load_is_one_line_for_the_operator(process_worker, tmp_path, capfd):
    (tmp_path / BUGGY).write_text("shape mismatch:\n  expected 3\n  got 4")
    with pytest.raises(CheckpointError) as caught:
        await process_worker().start(ignore_stage)
    assert str(caught.value) == "cannot load fake: RuntimeError: shape mismatch: expected 3 got 4"
    log = capfd.readouterr().err
    assert log.startswith("ERROR worker[")
    assert "load_fake_encoder (" in log
    assert log.count("\n") == 1


async def test_a_loader_that_is_not_there_is_a_failed_start(process_worker):
    with pytest.raises(
        CheckpointError, match="cannot load fake: ModuleNotFoundError: No module named 'nowhere'"
    ):
        await process_worker(loader="nowhere:load").start(ignore_stage)


async def test_a_crash_at_the_first_start_names_the_signal_and_where_to_look(process_worker, tmp_path):
    (tmp_path / DEADLY).touch()
    with pytest.raises(
        CheckpointError,
        match=r"cannot load fake: the worker process \(pid \d+\) was killed by SIGKILL "
        r"\(the kernel does that when memory runs out\) while it loaded; its own log lines say more",
    ):
        await process_worker().start(ignore_stage)
    assert children() == []


async def test_a_process_that_cannot_be_started_is_a_failed_start(process_worker, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(CheckpointError, match=r"cannot start a worker process: .*'/nowhere/python'"):
        await process_worker().start(ignore_stage)


async def test_a_mistake_in_the_stage_callback_is_not_swallowed(process_worker):
    def stumble(_: str) -> None:
        raise LookupError("no such widget")

    worker = process_worker()
    with pytest.raises(LookupError, match="no such widget"):
        await worker.start(stumble)
    assert worker.state is WorkerState.STOPPED
    assert children() == []


async def test_a_start_that_is_given_up_leaves_no_process(process_worker, fifo):
    loading = fifo(STUCK)
    worker = process_worker()
    starting = asyncio.create_task(worker.start(ignore_stage))
    await loading.signalled()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert worker.state is WorkerState.STOPPED
    assert children() == []


async def test_a_first_load_that_hangs_is_ended_and_says_where_it_hung(process_worker, tmp_path):
    """Else a device that does not answer keeps a server loading for ever, and nobody learns of it."""
    # No process comes to its first stage in a hundredth of a second.
    worker = process_worker(load_stall_timeout_s=0.01)
    with pytest.raises(CheckpointError) as caught:
        await worker.start(ignore_stage)
    assert re.sub(r"pid \d+", "pid 7", str(caught.value)) == (
        'cannot load fake: the worker process (pid 7) hung for 0.01 s in "starting the process" and was '
        f"killed; look at the disk that holds {tmp_path} and at the device cpu"
    )
    assert worker.state is WorkerState.STOPPED
    assert children() == []


# Passes that go wrong in a process that lives on


async def test_an_exception_under_a_pass_tells_its_type_and_nothing_else(process_worker, capfd):
    """The text of an exception may hold the input; it goes to the log, on one line."""
    worker = process_worker()
    await worker.start(ignore_stage)
    pid = pid_of(worker)
    with pytest.raises(PassFailedError) as caught:
        await worker.run([features_of(1, 2), features_of(RAISE)])
    assert str(caught.value) == "the encoder raised KeyError in pass 1 (2 inputs, 3 tokens)"
    assert (caught.value.pid, caught.value.pass_id) == (pid, 1)
    assert SECRET not in repr(caught.value)
    assert not isinstance(caught.value, PassOutOfMemoryError)
    await assert_answers(worker)
    assert pid_of(worker) == pid
    log = capfd.readouterr().err
    assert log.startswith(f"ERROR worker[{pid}] pass 1 failed (2 inputs) | KeyError: ")
    assert log.count("\n") == 1


async def test_a_pass_that_does_not_fit_into_memory_says_so(process_worker):
    """Whoever composed it may try a smaller one."""
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(PassOutOfMemoryError, match=r"the encoder raised MemoryError in pass 1 \(1 inputs"):
        await worker.run([features_of(OUT_OF_MEMORY)])
    await assert_answers(worker)


async def test_an_encoder_that_gives_rows_of_another_shape_fails_the_pass(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(PassFailedError, match="the encoder raised ValueError"):
        await worker.run([features_of(WRONG_SHAPE)])
    await assert_answers(worker)


async def test_rows_that_are_not_finite_are_named_beside_good_ones(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    result = await worker.run([features_of(1), features_of(NOT_FINITE), features_of(2)])
    assert result.nonfinite_rows == (1,)
    assert result.rows[[0, 2]].tolist() == [[1, 1, 0, 1], [2, 1, 0, 2]]
    assert 0 < result.device_s < TIMEOUT_S


async def test_a_large_pass_comes_whole_through_the_socket(process_worker):
    """Far more than a socket buffer holds, in both directions."""
    worker = process_worker()
    await worker.start(ignore_stage)
    result = await worker.run([features_of(*range(n % 8, n % 8 + 200)) for n in range(4_000)])
    assert result.rows.shape == (4_000, DIMENSION)
    assert result.rows[:, 0].tolist() == [n % 8 for n in range(4_000)]


async def test_passes_that_come_together_are_answered_each_with_its_own_rows(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    results = await asyncio.gather(*(worker.run([features_of(n)]) for n in range(20)))
    assert [result.rows[0, 0] for result in results] == list(range(20))


async def test_a_caller_who_goes_away_does_not_get_its_rows_to_somebody_else(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    leaving = [asyncio.create_task(worker.run([features_of(n)])) for n in range(100, 103)]
    await asyncio.sleep(0)  # the tasks hand their passes over
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    await assert_answers(worker)


# Processes that die


async def test_a_killed_process_fails_its_pass_and_is_replaced(process_worker, fifo):
    running = fifo(RUNNING)
    worker = process_worker()
    await worker.start(ignore_stage)
    pid = pid_of(worker)
    doomed = asyncio.create_task(worker.run([features_of(HANG, 1, 2)]))
    await running.signalled()
    assert worker.state is WorkerState.RUNNING
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError) as caught:
        await doomed
    assert str(caught.value) == (
        f"the worker process (pid {pid}) was killed by SIGKILL (the kernel does that when memory runs out) "
        "during pass 1 (1 inputs, 3 tokens)"
    )
    assert (caught.value.pid, caught.value.pass_id) == (pid, 1)
    assert worker.state is WorkerState.RESTARTING
    await assert_answers(worker)
    assert pid_of(worker) != pid
    assert worker.statistics().num_restarts == 1


async def test_a_crash_names_its_signal(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(WorkerDiedError, match=r"was killed by SIGSEGV during pass 1 \(1 inputs"):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)


async def test_passes_behind_the_one_that_died_are_told_that_they_did_not_run(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    died, waited = await asyncio.gather(
        worker.run([features_of(SEGFAULT)]), worker.run([features_of(1)]), return_exceptions=True
    )
    assert "SIGSEGV" in str(died)
    assert isinstance(waited, WorkerDiedError)
    assert str(waited) == "the worker process died before the pass was run"


async def test_a_pass_between_two_processes_is_refused_at_once(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    with pytest.raises(WorkerDiedError, match="the worker is not ready: restarting"):
        await worker.run([features_of(1)])


async def test_a_process_that_dies_idle_is_replaced_without_a_pass(process_worker, fifo):
    """Nobody should have to lose a pass to find out."""
    loaded = fifo(LOADED)
    worker = process_worker()
    await worker.start(ignore_stage)
    await loaded.signalled()
    pid = pid_of(worker)
    os.kill(pid, signal.SIGKILL)
    await loaded.signalled()
    await assert_answers(worker)
    assert pid_of(worker) != pid


async def test_a_stopped_process_is_killed_when_its_time_is_up(process_worker):
    worker = process_worker(pass_timeout_s=1)
    await worker.start(ignore_stage)
    pid = pid_of(worker)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(PassTimeoutError) as caught:
        await worker.run([features_of(1)])
    assert str(caught.value) == (
        f"the worker process (pid {pid}) had not answered pass 1 (1 inputs, 1 tokens) after 1 s "
        "and was killed"
    )
    await assert_answers(worker)
    assert not psutil.pid_exists(pid)


async def test_one_pass_may_be_given_less_time_than_the_others(process_worker):
    worker = process_worker(pass_timeout_s=600)
    await worker.start(ignore_stage)
    os.kill(pid_of(worker), signal.SIGSTOP)
    with pytest.raises(PassTimeoutError, match=r"after 0\.5 s and was killed"):
        await worker.run([features_of(1)], timeout_s=0.5)
    await assert_answers(worker)


async def test_a_device_in_an_error_state_costs_the_process(options, tmp_path, capfd):
    """After a device-side assert every call fails until the process ends."""
    (tmp_path / LOST_DEVICE).touch()
    worker = ProcessWorker(LoadOptions(folder=options.folder, source="fake", device="cuda:0"), loader=LOADER)
    await worker.start(ignore_stage)
    with pytest.raises(
        WorkerDiedError, match=r"exited with code 70 \(its device is in an error state\) during"
    ):
        await worker.run([features_of(DEVICE_ASSERT)])
    await assert_answers(worker)
    await worker.stop()
    assert "cuda:0 fails every call from here on" in capfd.readouterr().err


async def test_a_process_that_dies_at_every_start_is_restarted_ever_more_slowly(
    process_worker, tmp_path, caplog
):
    delays_s: list[float] = []

    async def record(delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) == 4:
            (tmp_path / DEADLY).unlink()

    worker = process_worker(backoff=Backoff(first_s=0.1, limit_s=0.3), sleep=record)
    await worker.start(ignore_stage)
    (tmp_path / DEADLY).touch()
    with caplog.at_level(logging.WARNING), pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)
    assert delays_s == [0.1, 0.2, 0.3, 0.3]
    assert worker.statistics().num_restarts == 5
    assert "while it loaded; its own log lines say more; starting another in 0.2 s" in caplog.text

    with pytest.raises(WorkerDiedError):  # after a good pass, the count begins anew
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)
    assert len(delays_s) == 4


async def test_every_line_of_a_worker_with_a_number_has_it(process_worker, tmp_path, caplog):
    """Metrics and alerts say which worker; its processes come and go, each with another id."""

    async def mend(_: float) -> None:
        (tmp_path / BROKEN).unlink()

    worker = process_worker(number=1, sleep=mend)
    await worker.start(ignore_stage)
    first_pid = worker.statistics().pid
    (tmp_path / BROKEN).write_text("no such folder")
    with caplog.at_level(logging.DEBUG, "laneway.worker"):
        with pytest.raises(WorkerDiedError) as died:
            await worker.run([features_of(SEGFAULT)])
        await assert_answers(worker)
    lines = {record.getMessage(): record.__dict__["fields"] for record in caplog.records}
    pid = worker.statistics().pid
    assert pid != first_pid
    assert lines[f"{died.value}; starting another as worker 1 now"] == {
        "worker": 1,
        "worker_pid": first_pid,
        "pass": 1,
    }
    assert lines["no such folder; starting another as worker 1 in 0.1 s"] == {"worker": 1}
    assert lines[f"worker 1 is ready again (pid {pid})"] == {"worker": 1, "worker_pid": pid}
    assert [told for message, told in lines.items() if message.startswith("worker 1 restarts: ")]
    assert all(told["worker"] == 1 for told in lines.values())


async def test_a_worker_without_a_number_is_the_worker(process_worker, caplog):
    worker = process_worker()
    await worker.start(ignore_stage)
    with caplog.at_level(logging.WARNING, "laneway.worker"), pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)
    ready = caplog.records[-1]
    pid = worker.statistics().pid
    assert ready.getMessage() == f"the worker is ready again (pid {pid})"
    assert ready.__dict__["fields"] == {"worker_pid": pid}


async def test_a_checkpoint_that_goes_missing_later_is_tried_again_and_again(process_worker, tmp_path):
    """A share that is gone for a minute must not end the server."""

    async def mend(_: float) -> None:
        (tmp_path / BROKEN).unlink()

    worker = process_worker(sleep=mend)
    await worker.start(ignore_stage)
    (tmp_path / BROKEN).write_text("no such folder")
    with pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)


async def test_a_restart_that_finds_another_model_waits_until_the_files_are_back(
    process_worker, tmp_path, caplog
):
    """A client's index would hold vectors of two models, and nobody could tell them apart."""
    states: list[WorkerState] = []

    async def put_back(_: float) -> None:
        states.append(worker.state)
        if len(states) == 2:
            (tmp_path / RETRAINED).unlink()

    worker = process_worker(sleep=put_back)
    await worker.start(ignore_stage)
    (tmp_path / RETRAINED).write_text("5ca1ab1e" * 8)
    with caplog.at_level(logging.WARNING), pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)
    assert states == [WorkerState.RESTARTING] * 2
    refusals = [record for record in caplog.records if "another model" in record.getMessage()]
    assert [record.levelname for record in refusals] == ["ERROR"] * 2
    assert re.sub(r"pid \d+", "pid 7", refusals[0].getMessage()) == (
        "the restarted worker process (pid 7) loaded another model, 5ca1ab1e5ca1 instead of 000000000000: "
        f"the checkpoint's files in {tmp_path} were changed; restart the server to serve them; "
        "starting another in 0.1 s"
    )


async def test_a_restart_that_hangs_is_killed_and_made_again(process_worker, fifo, tmp_path, caplog):
    stuck: list[int] = []

    async def mend(_: float) -> None:
        stuck.extend(child.pid for child in children())
        (tmp_path / STUCK).unlink()

    # Long enough for a process to come to its first stage on a busy machine: that takes a third of a second.
    worker = process_worker(load_stall_timeout_s=2, sleep=mend)
    await worker.start(ignore_stage)
    loading = fifo(STUCK)
    with caplog.at_level(logging.WARNING), pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    await loading.signalled()
    await assert_answers(worker)
    assert stuck == []
    assert 'hung for 2 s in "warming up" and was killed' in caplog.text
    assert "starting another in 0.1 s" in caplog.text


def test_the_first_restart_is_made_at_once_and_later_ones_wait_up_to_the_limit():
    backoff = Backoff()
    assert [backoff.delay_s(n) for n in (1, 2, 3, 4)] == [0.0, 0.1, 0.2, 0.4]
    assert backoff.delay_s(9) == 10.0
    assert backoff.delay_s(100_000) == 10.0


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "exited with code 0"),
        (3, "exited with code 3"),
        (76, "exited with code 76 (it was sent a frame that it could not read)"),
        (-11, "was killed by SIGSEGV"),
        (-40, "was killed by signal 40"),
    ],
)
def test_every_end_has_its_words(returncode, words):
    assert describe_exit(returncode) == words


# Stopping


async def test_a_stop_leaves_no_process_and_nothing_ready(process_worker):
    worker = process_worker()
    await worker.start(ignore_stage)
    await worker.stop()
    assert children() == []
    assert worker.state is WorkerState.STOPPED
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        await worker.wait_ready()
    with pytest.raises(WorkerDiedError, match="the worker is not ready: stopped"):
        await worker.run([features_of(1)])
    await worker.stop()


async def test_a_stop_abandons_the_pass_in_flight_with_an_error(process_worker, fifo):
    running = fifo(RUNNING)
    worker = process_worker()
    await worker.start(ignore_stage)
    hanging = asyncio.create_task(worker.run([features_of(HANG)]))
    await running.signalled()
    await worker.stop()
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        await hanging
    assert children() == []


async def test_an_idle_process_that_does_not_listen_is_killed_after_the_grace(process_worker):
    worker = process_worker(stop_grace_s=0.05)
    await worker.start(ignore_stage)
    os.kill(pid_of(worker), signal.SIGSTOP)
    async with asyncio.timeout(TIMEOUT_S):
        await worker.stop()
    assert children() == []


async def test_a_stop_while_a_restart_waits_ends_the_waiting(process_worker, tmp_path):
    is_waiting = asyncio.Event()

    async def wait_forever(_: float) -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    worker = process_worker(sleep=wait_forever)
    await worker.start(ignore_stage)
    (tmp_path / BROKEN).write_text("no such folder")
    with pytest.raises(WorkerDiedError):
        await worker.run([features_of(SEGFAULT)])
    waiting = asyncio.create_task(worker.wait_ready())
    await is_waiting.wait()
    await worker.stop()
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        await waiting


async def test_a_worker_that_was_never_started_stops_and_refuses(process_worker):
    worker = process_worker()
    assert worker.state is WorkerState.STARTING
    await worker.stop()
    with pytest.raises(WorkerDiedError, match="the worker was stopped"):
        await worker.wait_ready()


def test_a_loop_that_ends_without_a_stop_leaves_no_process(options):
    """A server that crashes out of its main function must not leave workers behind."""

    async def forget_to_stop() -> None:
        await ProcessWorker(options, loader=LOADER).start(ignore_stage)

    asyncio.run(forget_to_stop())
    assert children() == []


# Telling


async def test_statistics_and_repr_tell_what_the_worker_did(process_worker):
    worker = process_worker()
    before = worker.statistics()
    assert (before.is_ready, before.pid, before.num_passes, before.rss_bytes) == (False, None, 0, None)
    assert repr(worker) == "<ProcessWorker fake: starting, no process, 0 passes, 0 restarts>"
    await worker.start(ignore_stage)
    await assert_answers(worker)
    after = worker.statistics()
    (child,) = children()
    assert (after.is_ready, after.pid, after.num_passes, after.num_restarts) == (True, child.pid, 1, 0)
    assert after.rss_bytes == pytest.approx(child.memory_info().rss, rel=0.2)
    assert repr(worker) == f"<ProcessWorker fake: ready, pid {child.pid}, 1 passes, 0 restarts>"


async def test_a_process_logs_json_from_its_first_line_where_the_gateway_does(process_worker, capfd):
    """One line of text among the JSON is what breaks the collector of an operator's logs."""
    worker = process_worker(log_json=True, cpu=1000)
    await worker.start(ignore_stage)
    with pytest.raises(PassFailedError):
        await worker.run([features_of(RAISE)])
    warning, error = map(json.loads, capfd.readouterr().err.splitlines())
    assert warning["message"].startswith("cannot run on core 1000 alone")
    assert (warning["level"], warning["logger"]) == ("warning", "laneway.worker")
    assert (error["level"], error["message"]) == ("error", "pass 1 failed (1 inputs)")
    assert error["exception"].startswith("KeyError: ")
    assert (error["pid"], error["pass"]) == (pid_of(worker), 1)


def test_everything_works_on_uvloop_too(options, tmp_path):
    """It is the loop of the server; its sockets and readers are an implementation of their own."""

    async def main() -> None:
        worker = ProcessWorker(options, stop_grace_s=0.05, loader=LOADER)
        await worker.start(ignore_stage)
        await assert_answers(worker)
        result = await worker.run([features_of(*range(200)) for _ in range(4_000)])
        assert result.rows.shape == (4_000, DIMENSION)
        with pytest.raises(WorkerDiedError, match="SIGSEGV"):
            await worker.run([features_of(SEGFAULT)])
        await assert_answers(worker)
        os.kill(pid_of(worker), signal.SIGSTOP)
        await worker.stop()

    uvloop.run(main())
    assert children() == []


async def test_a_kernel_without_pidfds_is_served_as_well(process_worker, monkeypatch):
    """Linux before 5.3, and sandboxes that forbid the call."""

    def refuse(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    worker = process_worker()
    await worker.start(ignore_stage)
    with pytest.raises(WorkerDiedError, match="SIGSEGV"):
        await worker.run([features_of(SEGFAULT)])
    await assert_answers(worker)
    await worker.stop()
    assert children() == []
