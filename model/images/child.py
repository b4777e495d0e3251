"""One decode process, seen from the gateway: how it is started, spoken to and ended.

It is used by one task on one loop, which never has two things under way with it.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.errors import DecodeFailedError
from model.framing import PREFIX_BYTES, FrameError
from model.images import frames
from model.images.sizes import num_tokens_at
from model.images.spec import DecodedImage
from model.processes import start_python

# Of our packages the process gets the folders alone: what the packages themselves import (tokenizers,
# asyncio, this file) it has no use for, and it would start half as fast.
_PROGRAM = """\
import types
for name, folder in arguments["packages"].items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from model.images.main import main
main(arguments["fd"])
"""
_PACKAGES = {"model": str(Path(__file__).parents[1]), "model.images": str(Path(__file__).parent)}

_INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPYCACHEPREFIX")
"""What a Python may need to start. The rest of the gateway's environment holds keys and tokens."""
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # Large blocks go back to the kernel when they are freed, and one decode leaves no holes for the next:
    # the process stays as small as it was (mallopt(3)).
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}

log = logging.getLogger("laneway.images")


class Child:
    """Owns one process and the gateway's end of its socket."""

    def __init__(self, set_up: frames.SetUp) -> None:
        """Start the process; ``become_ready`` has to follow.

        Args:
            set_up: How it shall decode.

        Raises:
            OSError: There is no process, descriptor or memory to be had.
        """
        self._set_up = set_up
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            try:
                fd = theirs.fileno()
                arguments = {"fd": fd, "packages": _PACKAGES}
                self._process = start_python(_PROGRAM, arguments, fds=(fd,), environment=_environment())
            except BaseException:
                self._socket.close()
                raise
        self.is_lost = False
        """Seen to have ended, or to have spoken without being asked."""

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def become_ready(self) -> None:
        """Tell the process how to decode; return when it can.

        Raises:
            EOFError: The process is gone.
            OSError: The same, while data was under way.
            FrameError: It answered something else.
        """
        await self._send(frames.pack_head(self._set_up))
        message, _ = await self._receive()
        if not isinstance(message, frames.Ready):
            raise FrameError(f"a starting decode process sent {type(message).__name__}")

    async def decode(self, data: bytes) -> DecodedImage:
        """Decode one file.

        Raises:
            ImageError: It cannot be embedded; the process lives.
            EOFError: The process is gone.
            OSError: The same, while data was under way.
            FrameError: What it answered is no answer.
        """
        await self._send(frames.pack_head(frames.Decode(), body_bytes=len(data)))
        await self._send(data)
        message, body_bytes = await self._receive()
        match message:
            case frames.Decoded():
                spec = self._set_up.spec
                frames.check_decoded(message, body_bytes, spec)
                pixels = await self._read(body_bytes)
                return DecodedImage(
                    pixels=pixels.reshape(message.height, message.width, 3),
                    num_tokens=num_tokens_at((message.width, message.height), spec),
                )
            case frames.Refused() if body_bytes == 0:
                raise frames.error_of(message)
            case frames.Failed() if body_bytes == 0:
                log.error("a decode went wrong by a mistake of ours: %s", message.description)
                raise DecodeFailedError()
            case _:
                raise FrameError(f"{message!r} is no answer to an image")

    @contextmanager
    def watched(self, on_loss: Callable[[], None]) -> Generator[None]:
        """Within it, while nothing is asked of the process, its end calls ``on_loss``."""
        loop = asyncio.get_running_loop()

        def lose() -> None:
            self.is_lost = True
            loop.remove_reader(self._socket)
            on_loss()

        # An idle process has nothing to say: what can be read is the end of its socket.
        loop.add_reader(self._socket, lose)
        try:
            yield
        finally:
            loop.remove_reader(self._socket)

    async def end(self) -> int:
        """Kill the process, if it still lives; return its return code when it is gone.

        It has nothing to save, and all it holds is worthless without the gateway.
        """
        self._process.kill()
        self._socket.close()
        # In a thread: the kernel takes its time to free some hundred megabytes.
        return await asyncio.to_thread(self._process.wait)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self) -> tuple[frames.ToGateway, int]:
        """Receive a message, and how many bytes of body follow it."""
        prefix = await self._read(PREFIX_BYTES)
        header_bytes, body_bytes = frames.unpack_prefix(prefix.data)
        header = await self._read(header_bytes)
        return frames.unpack_for_gateway(header.data), body_bytes

    async def _read(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        loop = asyncio.get_running_loop()
        buffer = np.empty(num_bytes, dtype=np.uint8)
        num_read = 0
        while num_read < num_bytes:
            num_new = await loop.sock_recv_into(self._socket, buffer[num_read:].data)
            if num_new == 0:
                raise EOFError(f"the socket ended after {num_read} of {num_bytes} bytes")
            num_read += num_new
        return buffer


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **_ENVIRONMENT}
