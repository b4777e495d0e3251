"""The worker process: load a model, then answer passes one by one until the gateway ends or says stop.

Rule 1: nothing that the encoder raises leaves the process but the exception's type; its text goes to the log.
Rule 2: no worker without a gateway: the process ends with its parent, even in the middle of a pass.
"""

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from io import BufferedReader
from typing import NoReturn, cast

import numpy as np

from model.errors import CheckpointError
from model.types import Features
from model.worker import frames
from model.worker.child import EXIT_DEVICE_LOST, EXIT_LOAD_FAILED, EXIT_PROTOCOL
from model.worker.logs import configure_logging, one_line
from model.worker.passes import Encoder, Fault, import_loader, judge, release_memory, run_pass

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PROCESS_NAME = b"laneway-worker"  # the kernel shows 15 bytes

log = logging.getLogger("laneway.worker")


def main(fd: int, *, log_json: bool = False) -> NoReturn:
    """Serve the socket that was inherited as ``fd``; never returns."""
    _ignore_shutdown_signals()
    _die_with_parent()
    configure_logging(as_json=log_json)
    faulthandler.enable()
    with socket.socket(fileno=fd) as gateway:
        gateway.set_inheritable(False)
        exit_code = serve(gateway)
    # Nothing here needs tearing down, and a device in an error state can hang in it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def serve(gateway: socket.socket) -> int:
    """Load what the first frame says, then answer passes; returns the exit code."""
    incoming = cast(BufferedReader, gateway.makefile("rb", buffering=frames.CHUNK_BYTES))
    try:
        load, _ = _receive(incoming)
        if not isinstance(load, frames.Load):
            raise frames.FrameError(f"the first frame must be a Load, not a {type(load).__name__}")
        _run_on(load.cpu)
        encoder = _load(load, gateway)
        if encoder is None:
            return EXIT_LOAD_FAILED
        return _answer_passes(encoder, load.options.device, gateway, incoming)
    except frames.FrameError as error:
        log.error("%s", error)
        return EXIT_PROTOCOL
    except (EOFError, ConnectionError):
        return 0  # the gateway is gone


def _load(load: frames.Load, gateway: socket.socket) -> Encoder | None:
    def on_stage(text: str) -> None:
        _send(gateway, frames.Stage(text=text))

    try:
        encoder = import_loader(load.loader)(load.options, on_stage)
    except ConnectionError:
        raise
    except Exception as error:
        # Before the first request, a text cannot hold an input: the operator may read all of it.
        if isinstance(error, CheckpointError):
            message = str(error)
        else:
            log.exception("cannot load %s", load.options.source)
            message = f"cannot load {load.options.source}: {type(error).__name__}: {error}"
        _send(gateway, frames.LoadFailed(message=one_line(message)))
        return None
    # torch and the model are some hundred thousand objects that stay: a full collection would look through
    # them all in the middle of a pass.
    gc.collect()
    gc.freeze()
    _send(gateway, frames.Ready(info=encoder.info))
    return encoder


def _answer_passes(encoder: Encoder, device: str, gateway: socket.socket, incoming: BufferedReader) -> int:
    while True:
        message, body = _receive(incoming)
        match message:
            case frames.Run():
                if not _answer(encoder, device, gateway, message.pass_id, frames.unpack_run(message, body)):
                    return EXIT_DEVICE_LOST
            case frames.Stop():
                return 0
            case frames.Load():
                raise frames.FrameError("a second Load came")


def _answer(
    encoder: Encoder, device: str, gateway: socket.socket, pass_id: int, features: Sequence[Features]
) -> bool:
    """Run one pass and send its rows or its failure. ``False``: the device is lost, nothing was sent."""
    try:
        result = run_pass(encoder, features)
    except Exception as error:
        log.exception("a pass of %d inputs failed", len(features))
        fault, error_type = judge(error, device), type(error).__name__
    else:
        rows = frames.Rows(
            pass_id=pass_id,
            num_rows=result.rows.shape[0],
            dimension=result.rows.shape[1],
            device_s=result.device_s,
            nonfinite_rows=result.nonfinite_rows,
        )
        _send(gateway, rows, result.rows.reshape(-1).view(np.uint8).data)
        return True
    if fault is Fault.DEVICE_LOST:
        log.critical("%s fails every call from here on; the process ends to get a new one", device)
        return False
    is_out_of_memory = fault is Fault.OUT_OF_MEMORY
    if is_out_of_memory:  # here, not above: the exception's traceback holds the tensors of the pass
        gc.collect()
        release_memory(device)
    _send(
        gateway,
        frames.Failed(
            pass_id=pass_id,
            error_type=error_type,
            is_out_of_memory=is_out_of_memory,
        ),
    )
    return True


def _send(gateway: socket.socket, message: frames.ToGateway, body: memoryview | bytes = b"") -> None:
    head = frames.pack_head(message, body_bytes=len(body))
    if len(body) <= frames.CHUNK_BYTES:
        # One write is one waking of the gateway: for a query that is most of what this socket costs.
        gateway.sendall(head + bytes(body))
        return
    gateway.sendall(head)
    gateway.sendall(body)


def _receive(incoming: BufferedReader) -> tuple[frames.ToWorker, memoryview]:
    header_bytes, body_bytes = frames.unpack_prefix(_read(incoming, frames.PREFIX_BYTES))
    message = frames.unpack_for_worker(_read(incoming, header_bytes))
    return message, _read(incoming, body_bytes)


def _read(incoming: BufferedReader, num_bytes: int) -> memoryview:
    buffer = np.empty(num_bytes, dtype=np.uint8).data
    num_read = incoming.readinto(buffer)  # blocks until it is full, or the stream has ended
    if num_read < num_bytes:
        raise EOFError(f"the gateway's socket ended after {num_read} of {num_bytes} bytes")
    return buffer


def _ignore_shutdown_signals() -> None:
    """Leave shutting down to the gateway, which drains first.

    Ctrl-C reaches the whole process group, and systemd's default ``KillMode=control-group`` sends SIGTERM
    to every process of a service. The worker ends when it is told to, when its socket ends, or by SIGKILL.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (prctl(2)), also in the middle of a pass.

    A parent that ended before this line is noticed by the end of the socket. Linux only; elsewhere the
    end of the socket is all there is.
    """
    with contextlib.suppress(AttributeError, OSError):
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_NAME, _PROCESS_NAME)


def _run_on(cpu: int | None) -> None:
    if cpu is None:
        return
    try:
        os.sched_setaffinity(0, {cpu})
    except (AttributeError, OSError) as error:
        log.warning("cannot run on core %d alone: %s", cpu, error)
