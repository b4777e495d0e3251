"""The worker process alone, with the test at the other end of its socket."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import model
from model.worker import LoadOptions, frames
from tests.model.worker.fakes import GO_ON, LOADER, RUNNING, UNTIL_TOLD, features_of
from tests.model.worker.processes import TIMEOUT_S, Fifo, is_gone

ROOT = Path(model.__file__).parents[1]
MAIN = "import sys; from model.worker.main import main; main(*map(int, sys.argv[1:]))"


@contextmanager
def worker_process() -> Iterator[tuple[socket.socket, subprocess.Popen]]:
    with both_sockets() as (ours, _, process):
        yield ours, process


@contextmanager
def both_sockets() -> Iterator[tuple[socket.socket, socket.socket, subprocess.Popen]]:
    (ours, theirs), (our_urgent, their_urgent) = socket.socketpair(), socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    our_urgent.settimeout(TIMEOUT_S)
    with ours, theirs, our_urgent, their_urgent:
        fds = (theirs.fileno(), their_urgent.fileno())
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, fds)],
            pass_fds=fds,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            text=True,
        )
        theirs.close()
        their_urgent.close()
        with process:
            try:
                yield ours, our_urgent, process
            finally:
                process.kill()


def load(folder: Path) -> bytes:
    options = LoadOptions(folder=str(folder), source="fake")
    return frames.pack_head(frames.Load(options=options, loader=LOADER, cpu=None))


def frame(parts: list[frames.Buffer]) -> bytes:
    return b"".join(parts)


def receive(connection: socket.socket) -> frames.ToGateway:
    prefix = connection.recv(frames.PREFIX_BYTES, socket.MSG_WAITALL)
    header_bytes, body_bytes = frames.unpack_prefix(prefix)
    header = connection.recv(header_bytes, socket.MSG_WAITALL)
    connection.recv(body_bytes, socket.MSG_WAITALL)
    return frames.unpack_for_gateway(memoryview(header))


def receive_until_ready(connection: socket.socket) -> None:
    while not isinstance(receive(connection), frames.Ready):
        pass


def test_a_worker_whose_gateway_closes_the_socket_ends_quietly(tmp_path):
    with worker_process() as (connection, process):
        connection.sendall(load(tmp_path))
        receive_until_ready(connection)
        connection.close()
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, log) == (0, "")


def test_a_worker_that_is_told_to_stop_ends_quietly(tmp_path):
    with worker_process() as (connection, process):
        connection.sendall(load(tmp_path))
        receive_until_ready(connection)
        connection.sendall(frames.pack_head(frames.Stop()))
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, log) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_shutdown_signals_are_left_to_the_gateway(tmp_path, number):
    """Ctrl-C and systemd signal every process at once; workers must live until the gateway has drained."""
    with worker_process() as (connection, process):
        connection.sendall(load(tmp_path))
        receive_until_ready(connection)
        process.send_signal(number)
        connection.sendall(frame(frames.pack_run(5, [features_of(1, 2, 3)])))
        answer = receive(connection)
    assert isinstance(answer, frames.Rows)
    assert answer.pass_id == 5


@pytest.mark.parametrize(
    ("nonsense", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a frame starts with b'LNW1', this one with b'GET '"),
        (frames.pack_head(frames.Stop()), "the first frame must be a Load, not a Stop"),
        (frames.pack_head(frames.Stage(text="hello")), "no message for a worker: Invalid value 'Stage'"),
    ],
)
def test_nonsense_instead_of_a_first_frame_ends_the_process_with_a_message(nonsense, complaint):
    with worker_process() as (connection, process):
        connection.sendall(nonsense)
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == os.EX_PROTOCOL
    assert log.startswith(f"ERROR worker[{process.pid}] {complaint}")
    assert log.count("\n") == 1


def test_a_pass_that_contradicts_itself_ends_the_process_with_a_message(tmp_path):
    run = frames.Run(pass_id=1, lengths=(3,), prompt_lengths=(0,), dropped_lengths=(0,))
    with worker_process() as (connection, process):
        connection.sendall(load(tmp_path) + frames.pack_head(run, body_bytes=8) + bytes(8))
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == os.EX_PROTOCOL
    assert (
        log == f"ERROR worker[{process.pid}] a pass of 3 tokens and 0 bytes of pixels has a body of 8 bytes\n"
    )


async def test_nonsense_in_the_middle_of_a_pass_ends_the_process_after_it(tmp_path):
    """The pass is not to blame, and its rows are good."""
    running, go_on = Fifo(tmp_path / RUNNING), Fifo(tmp_path / GO_ON)
    with both_sockets() as (connection, urgent, process):
        connection.sendall(load(tmp_path))
        receive_until_ready(connection)
        connection.sendall(frame(frames.pack_run(3, [features_of(UNTIL_TOLD)])))
        await running.signalled()
        urgent.sendall(b"GET / HTTP/1.1\r\n\r\n")
        go_on.signal()
        answer = receive(connection)
        _, log = process.communicate(timeout=TIMEOUT_S)
    running.close()
    go_on.close()
    assert answer.pass_id == 3
    assert process.returncode == os.EX_PROTOCOL
    assert log == f"ERROR worker[{process.pid}] a frame starts with b'LNW1', this one with b'GET '\n"


def test_the_next_pass_is_there_when_one_ends(tmp_path):
    """The device need not wait for the gateway to hear of the end and to send another."""
    with worker_process() as (connection, _):
        staged = (frame(frames.pack_run(pass_id, [features_of(pass_id)])) for pass_id in (1, 2, 3))
        connection.sendall(load(tmp_path) + b"".join(staged))
        receive_until_ready(connection)
        assert [receive(connection).pass_id for _ in range(3)] == [1, 2, 3]


def test_a_second_load_ends_the_process_with_a_message(tmp_path):
    with worker_process() as (connection, process):
        connection.sendall(load(tmp_path) * 2)
        _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == os.EX_PROTOCOL
    assert log == f"ERROR worker[{process.pid}] a second Load came\n"


GATEWAY = """
import asyncio, sys
from model.worker import LoadOptions, ProcessWorker
from tests.model.worker.fakes import HANG, LOADER, features_of

async def main():
    worker = ProcessWorker(LoadOptions(folder=sys.argv[1], source="fake"), loader=LOADER)
    await worker.start(lambda stage: None)
    print(worker.statistics().pid, flush=True)
    await worker.run([features_of(HANG if sys.argv[2] == "busy" else 1)])
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("occupation", ["idle", "busy"])
async def test_a_worker_ends_with_its_gateway(tmp_path, occupation):
    """Also in the middle of a pass, where it reads no socket: else it would hold the device on and on."""
    running = Fifo(tmp_path / RUNNING)
    command = [sys.executable, "-c", GATEWAY, str(tmp_path), occupation]
    gateway = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    assert gateway.stdout is not None
    worker = os.pidfd_open(int(await gateway.stdout.readline()))
    if occupation == "busy":
        await running.signalled()
    gateway.kill()
    await gateway.wait()
    running.close()
    assert is_gone(worker)
