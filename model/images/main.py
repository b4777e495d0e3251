"""The decode process: one image file at a time in, its pixels out, until the gateway ends.

Rule 1: it holds nothing worth stealing and can take nothing down: no key in its environment, no file or
socket but the gateway's, a bound on its memory, and the gateway kills it when it takes too long.
Rule 2: it logs nothing. What went wrong is told to the gateway, which has a log.
Rule 3: it imports Pillow, numpy and what is needed to speak, and no more: it starts in 0.1 s, so that one
that was killed is soon replaced.
"""

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import socket
import traceback
from io import BufferedReader
from pathlib import Path
from typing import NoReturn, cast

from model.errors import ImageError
from model.images import frames
from model.images.decoding import decode

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
_PROCESS_NAME = b"laneway-decoder"  # the kernel shows 15 bytes

_READ_BYTES = 64 * 1024


def main(fd: int) -> NoReturn:
    """Serve the socket that was inherited as ``fd``; never returns."""
    _ignore_shutdown_signals()
    _confine()
    faulthandler.enable()
    with socket.socket(fileno=fd) as gateway:
        gateway.set_inheritable(False)
        exit_code = serve(gateway)
    os._exit(exit_code)


def serve(gateway: socket.socket) -> int:
    """Answer one image after the other, as the first frame says; returns the exit code."""
    incoming = cast(BufferedReader, gateway.makefile("rb", buffering=_READ_BYTES))
    try:
        set_up, _ = _receive(incoming)
        if not isinstance(set_up, frames.SetUp):
            return os.EX_PROTOCOL
        _limit_memory(set_up.limits.memory_bytes)
        gateway.sendall(frames.pack_head(frames.Ready()))
        while True:
            message, data = _receive(incoming)
            if not isinstance(message, frames.Decode):
                return os.EX_PROTOCOL
            _answer(gateway, set_up, data)
            del data  # else it would lie beside the next one
    except frames.FrameError:
        return os.EX_PROTOCOL
    except (EOFError, ConnectionError):
        return os.EX_OK  # the gateway is gone


def _answer(gateway: socket.socket, set_up: frames.SetUp, data: bytes) -> None:
    try:
        image = decode(data, set_up.spec, set_up.limits, orientation=set_up.orientation, alpha=set_up.alpha)
    except ImageError as error:
        gateway.sendall(frames.pack_head(frames.refusal_of(error)))
    except Exception as error:
        gateway.sendall(frames.pack_head(frames.Failed(description=_describe(error))))
    else:
        height, width, _ = image.pixels.shape
        decoded = frames.Decoded(width=width, height=height)
        gateway.sendall(frames.pack_head(decoded, body_bytes=image.pixels.nbytes))
        gateway.sendall(image.pixels.reshape(-1).data)


def _receive(incoming: BufferedReader) -> tuple[frames.ToProcess, bytes]:
    header_bytes, body_bytes = frames.unpack_prefix(_read(incoming, frames.PREFIX_BYTES))
    message = frames.unpack_for_process(_read(incoming, header_bytes))
    return message, _read(incoming, body_bytes)


def _read(incoming: BufferedReader, num_bytes: int) -> bytes:
    data = incoming.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError(f"the gateway's socket ended after {len(data)} of {num_bytes} bytes")
    return data


def _describe(error: Exception) -> str:
    path = " > ".join(f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__))
    return f"{type(error).__name__} in {path}"


def _ignore_shutdown_signals() -> None:
    """Leave shutting down to the gateway, which answers its clients first; see ``worker/main.py``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _confine() -> None:
    """Die with the gateway, gain no rights by any program, leave no core with somebody's picture in it.

    A gateway that ended before this line is noticed by the end of the socket. prctl(2) is Linux's;
    elsewhere the end of the socket is all there is.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, OSError):
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PR_SET_NAME, _PROCESS_NAME)


def _limit_memory(memory_bytes: int) -> None:
    """Give this process so much more address space than it has now; Linux only."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit_bytes = num_pages * resource.getpagesize() + memory_bytes
    _, hard_bytes = resource.getrlimit(resource.RLIMIT_AS)
    if hard_bytes != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
