"""The decode process: one image file at a time in, its pixels out, until the gateway ends.

Rule 1: it holds nothing worth stealing and takes nothing down: no key in its environment, no file or socket
but the gateway's, and the gateway kills it when it takes too long. ``confinement.py`` says what else it
cannot do, and what it still can.
Rule 2: it logs nothing. What went wrong is told to the gateway, which has a log.
Rule 3: it imports Pillow, numpy and what is needed to speak, and no more: it starts in 0.1 s, so that one
that was killed is soon replaced.
"""

import faulthandler
import os
import socket
import traceback
from io import BufferedReader
from typing import NoReturn, cast

from model.errors import ImageError
from model.framing import PREFIX_BYTES, FrameError
from model.images import frames
from model.images.confinement import confine
from model.images.decoding import decode
from model.processes import die_with_parent, ignore_shutdown_signals

_READ_BYTES = 64 * 1024


def main(fd: int) -> NoReturn:
    """Serve the socket that was inherited as ``fd``; never returns."""
    ignore_shutdown_signals()
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
        confine(memory_bytes=set_up.limits.memory_bytes)
        die_with_parent(name="laneway-decoder")
        gateway.sendall(frames.pack_head(frames.Ready()))
        while True:
            message, data = _receive(incoming)
            if not isinstance(message, frames.Decode):
                return os.EX_PROTOCOL
            _answer(gateway, set_up, data)
            del data  # else it would lie beside the next one
    except FrameError:
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
    header_bytes, body_bytes = frames.unpack_prefix(_read(incoming, PREFIX_BYTES))
    message = frames.unpack_for_process(_read(incoming, header_bytes))
    return message, _read(incoming, body_bytes)


def _read(incoming: BufferedReader, num_bytes: int) -> bytes:
    data = incoming.read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError(f"the gateway's socket ended after {len(data)} of {num_bytes} bytes")
    return data


def _describe(error: Exception) -> str:
    # ``extract_tb`` would read the sources, and there is no opening a file any more.
    steps = traceback.walk_tb(error.__traceback__)
    path = " > ".join(f"{frame.f_code.co_name}:{line}" for frame, line in steps)
    return f"{type(error).__name__} in {path}"
