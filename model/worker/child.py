"""One worker process, seen from the gateway: how it is started, spoken to and ended.

No thread is needed: the event loop reads the sockets, and the end of the process is a readable file
descriptor (pidfd_open(2)). Whether a dead process is replaced is decided in ``process.py``.

The sockets are read and written as they are, without asyncio's streams or transports: a frame is sent in the
call that asks for it and handed on in the callback that received it, and pixels are never copied on the way.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

from model.worker import frames
from model.worker.assembly import Assembler

EXIT_PROTOCOL = os.EX_PROTOCOL
"""The worker was sent something that is no message for it."""
EXIT_LOAD_FAILED = os.EX_CONFIG
"""The model could not be loaded; a ``LoadFailed`` frame said why."""
EXIT_DEVICE_LOST = os.EX_SOFTWARE
"""The device answers every call with an error until the process ends."""

_EXITS = {
    EXIT_PROTOCOL: "it was sent a frame that it could not read",
    EXIT_LOAD_FAILED: "the model could not be loaded",
    EXIT_DEVICE_LOST: "its device is in an error state",
}

# The worker sees the packages that its parent sees, whatever way the parent came by them. Ctrl-C reaches
# the whole foreground process group, also while the worker still imports, so it is ignored first of all.
_BOOTSTRAP = """\
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[2])
from model.worker.main import main
main(*json.loads(sys.argv[1]), log_json=json.loads(sys.argv[3]))
"""

_NO_PIDFD_POLL_S = 0.05
_MAX_PARTS = 64
"""Handed to the kernel at once; it takes 1,024 at most (IOV_MAX)."""

OnFrame = Callable[[frames.ToGateway, memoryview], None]
"""Takes a message and its body; raises ``FrameError`` at one that should not have come."""


class Child:
    """Owns one process and the gateway's ends of its two sockets. Lives on one loop."""

    def __init__(self, *, num_threads: int, log_json: bool) -> None:
        """Start the process; it waits for a ``Load`` frame.

        Args:
            num_threads: Compute threads that its libraries may start.
            log_json: It logs JSON, from its first line on.

        Raises:
            OSError: There is no process, descriptor or memory to be had.
        """
        (self._socket, theirs), (self._urgent_socket, their_urgent) = _two_socket_pairs()
        with theirs, their_urgent:
            try:
                fds = (theirs.fileno(), their_urgent.fileno())
                self._process = _spawn(fds, num_threads, log_json=log_json)
            except BaseException:
                self._socket.close()
                self._urgent_socket.close()
                raise
        loop = asyncio.get_running_loop()
        self.exited = asyncio.create_task(_wait_exit(self._process), name=f"exit of worker {self.pid}")
        """Done when the process has ended and was reaped; the result is its return code."""
        self.silenced: asyncio.Future[Exception] = loop.create_future()
        """Done when nothing more will come, and everything that came was handed on. The result says why:
        ``EOFError`` or ``OSError`` where the process is gone or has closed its end, ``FrameError`` where it
        sent what is no message for a gateway."""
        self._outboxes = {
            is_urgent: _Outbox(one) for is_urgent, one in ((False, self._socket), (True, self._urgent_socket))
        }
        self._assembler = Assembler(frames.unpack_for_gateway)
        self._arrived: deque[tuple[frames.ToGateway, memoryview]] = deque()
        """Frames that nobody has taken."""
        self._has_arrived = asyncio.Event()
        self._on_frame: OnFrame | None = None
        self._socket.setblocking(False)
        loop.add_reader(self._socket, self._read)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, parts: Sequence[frames.Buffer], *, is_urgent: bool = False) -> None:
        """Send a whole frame: at once as much as the kernel takes, the rest as it takes it.

        What a process that is gone should have got is dropped; ``silenced`` tells.

        Args:
            parts: The frame. They must not change until the frame is answered.
            is_urgent: Do not wait behind frames that are not.
        """
        self._outboxes[is_urgent].send(parts)

    async def receive(self) -> tuple[frames.ToGateway, memoryview]:
        """Receive a frame: its message and its body. To be used before ``listen``.

        Raises:
            EOFError: The process is gone, or has closed its end.
            OSError: The same, while data was under way.
            FrameError: What came is no message for a gateway.
        """
        while not self._arrived:
            if self.silenced.done():
                raise self.silenced.result()
            self._has_arrived.clear()
            await self._has_arrived.wait()
        return self._arrived.popleft()

    def listen(self, on_frame: OnFrame) -> None:
        """Have every frame from now on handed over in the callback that received it."""
        self._on_frame = on_frame
        self._hand_on()

    async def wait(self) -> int:
        """Return the return code when the process has ended."""
        return await asyncio.shield(self.exited)

    async def kill(self) -> int:
        """End the process at once; return its return code when it is gone."""
        self._process.kill()
        return await self.wait()

    async def end(self, *, grace_s: float) -> int:
        """Ask the process to end; kill it if it has not after ``grace_s``."""
        # No SIGTERM in between: workers ignore it (see main.py), and have nothing to save.
        self.send([frames.pack_head(frames.Stop())])
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                return await self.wait()
        return await self.kill()

    def discard(self) -> None:
        """Leave nothing behind, whatever happened before. Blocks only if the process still has to die."""
        if not self.exited.done() or self.exited.cancelled():
            self.exited.cancel()
            self._process.kill()
            self._process.wait()
        asyncio.get_running_loop().remove_reader(self._socket)
        for outbox in self._outboxes.values():
            outbox.discard()
        self._socket.close()
        self._urgent_socket.close()

    def _read(self) -> None:
        try:
            num_bytes = self._socket.recv_into(self._assembler.space)
            if num_bytes == 0:
                raise EOFError("the worker closed its socket")
            self._arrived.extend(self._assembler.take(num_bytes))
        except BlockingIOError:
            return
        except (EOFError, OSError, frames.FrameError) as error:
            self._fall_silent(error)
        self._hand_on()

    def _hand_on(self) -> None:
        self._has_arrived.set()
        while self._on_frame is not None and self._arrived:
            try:
                self._on_frame(*self._arrived.popleft())
            except frames.FrameError as error:
                self._arrived.clear()
                self._fall_silent(error)

    def _fall_silent(self, error: Exception) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        if not self.silenced.done():
            self.silenced.set_result(error)


class _Outbox:
    """Owns what is still to be sent by one socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._parts: deque[memoryview] = deque()

    def send(self, parts: Sequence[frames.Buffer]) -> None:
        is_waiting = bool(self._parts)
        self._parts.extend(map(memoryview, parts))
        if is_waiting:
            return
        self._write()
        if self._parts:
            asyncio.get_running_loop().add_writer(self._socket, self._write_on)

    def discard(self) -> None:
        if self._parts:
            self._parts.clear()
            asyncio.get_running_loop().remove_writer(self._socket)

    def _write_on(self) -> None:
        self._write()
        if not self._parts:
            asyncio.get_running_loop().remove_writer(self._socket)

    def _write(self) -> None:
        # One call for each turn of the loop: thirty megabytes must not keep it from everything else.
        try:
            num_bytes = self._socket.sendmsg(islice(self._parts, _MAX_PARTS))
        except BlockingIOError:
            return
        except OSError:
            num_bytes = sum(map(len, self._parts))  # nobody is there to read it
        self._drop(num_bytes)

    def _drop(self, num_bytes: int) -> None:
        while self._parts and num_bytes >= len(self._parts[0]):
            num_bytes -= len(self._parts.popleft())
        if self._parts:
            self._parts[0] = self._parts[0][num_bytes:]


def describe_exit(returncode: int) -> str:
    """Say how a process ended, in words that follow "the worker process"."""
    if returncode < 0:
        hint = " (the kernel does that when memory runs out)" if returncode == -signal.SIGKILL else ""
        return f"was killed by {_signal_name(-returncode)}{hint}"
    reason = f" ({_EXITS[returncode]})" if returncode in _EXITS else ""
    return f"exited with code {returncode}{reason}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _two_socket_pairs() -> tuple[tuple[socket.socket, socket.socket], tuple[socket.socket, socket.socket]]:
    first = socket.socketpair()
    try:
        return first, socket.socketpair()
    except OSError:
        for one in first:
            one.close()
        raise


def _spawn(fds: tuple[int, int], num_threads: int, *, log_json: bool) -> "subprocess.Popen[bytes]":
    path = [os.path.abspath(entry) for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOTSTRAP, json.dumps(fds), json.dumps(path), json.dumps(log_json)],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        # What a library prints in a worker belongs with its log, not into the gateway's output.
        stdout=sys.__stderr__,
        env=_environment(num_threads),
    )


def _environment(num_threads: int) -> dict[str, str]:
    # Set from outside: the libraries read these once, when they are loaded.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(num_threads))}


async def _wait_exit(process: "subprocess.Popen[bytes]") -> int:
    try:
        pidfd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # Linux before 5.3, a sandbox that forbids it, or no Linux
        while (returncode := process.poll()) is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_NO_PIDFD_POLL_S)
        return returncode
    loop = asyncio.get_running_loop()
    has_ended = asyncio.Event()
    loop.add_reader(pidfd, has_ended.set)
    try:
        await has_ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()  # returns at once: the process is a zombie by now
