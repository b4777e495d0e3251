"""One worker process, seen from the gateway: how it is started, spoken to and ended.

No thread is needed: the event loop reads the socket, and the end of the process is a readable file
descriptor (pidfd_open(2)). Whether a dead process is replaced is decided in ``process.py``.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

from model.worker import frames

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
main(int(sys.argv[1]), log_json=json.loads(sys.argv[3]))
"""

_NO_PIDFD_POLL_S = 0.05


class Child:
    """Owns one process and the gateway's end of its socket. Used by one task at a time, on one loop."""

    def __init__(self, *, num_threads: int, log_json: bool) -> None:
        """Start the process; it waits for a ``Load`` frame.

        Args:
            num_threads: Compute threads that its libraries may start.
            log_json: It logs JSON, from its first line on.

        Raises:
            OSError: There is no process, descriptor or memory to be had.
        """
        self._socket, theirs = socket.socketpair()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        with theirs:
            try:
                self._process = _spawn(theirs.fileno(), num_threads, log_json=log_json)
            except BaseException:
                self._socket.close()
                raise
        self.exited = asyncio.create_task(_wait_exit(self._process), name=f"exit of worker {self.pid}")
        """Done when the process has ended and was reaped; the result is its return code."""

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def send(self, frame: bytes) -> None:
        """Send a whole frame. Raises ``OSError`` when the process is gone."""
        await self._connection()
        self.write(frame)
        await self.drain()

    def write(self, frame: bytes) -> None:
        """Begin to send a whole frame, after the first was sent; ``drain`` tells what became of it."""
        assert self._streams is not None, "the first frame is sent by `send`"
        self._streams[1].write(frame)

    async def drain(self) -> None:
        """Wait until what was written is on its way. Raises ``OSError`` when the process is gone."""
        _, writer = await self._connection()
        await writer.drain()

    async def receive(self) -> tuple[frames.ToGateway, memoryview]:
        """Receive a frame: its message and its body.

        Raises:
            EOFError: The process is gone, or has closed its end.
            OSError: The same, while data was under way.
            FrameError: What came is no message for a gateway.
        """
        reader, _ = await self._connection()
        header_bytes, body_bytes = frames.unpack_prefix(await reader.readexactly(frames.PREFIX_BYTES))
        message = frames.unpack_for_gateway(memoryview(await reader.readexactly(header_bytes)))
        return message, memoryview(await reader.readexactly(body_bytes))

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
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.send(frames.pack_head(frames.Stop()))
                return await self.wait()
        return await self.kill()

    def discard(self) -> None:
        """Leave nothing behind, whatever happened before. Blocks only if the process still has to die."""
        if not self.exited.done() or self.exited.cancelled():
            self.exited.cancel()
            self._process.kill()
            self._process.wait()
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._socket.close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Streams, which stay registered with the loop: to wait for the bare socket anew with each frame
        # costs four system calls a pass.
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._socket, limit=frames.CHUNK_BYTES)
        return self._streams


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


def _spawn(fd: int, num_threads: int, *, log_json: bool) -> "subprocess.Popen[bytes]":
    path = [os.path.abspath(entry) for entry in sys.path]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOTSTRAP, str(fd), json.dumps(path), json.dumps(log_json)],
        pass_fds=(fd,),
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
