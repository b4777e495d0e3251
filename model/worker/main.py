"""The worker process: load a model, then answer passes until the gateway ends or says stop.

One thread computes one pass after the other, urgent ones first. At each safepoint of a pass that is not
urgent it looks whether an urgent one has come that may interrupt; that one is computed and answered then and
there, and the other goes on where it was.

Rule 1: nothing that the encoder raises leaves the process but the exception's type; its text goes to the log.
Rule 2: no worker without a gateway: the process ends with its parent, even in the middle of a pass.
Rule 3: what goes wrong in a pass that interrupts does no harm to the one that it interrupts.
"""

import contextlib
import ctypes
import faulthandler
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import numpy as np

from model.errors import CheckpointError
from model.interruption import Safepoints
from model.worker import frames
from model.worker.child import EXIT_DEVICE_LOST, EXIT_LOAD_FAILED, EXIT_PROTOCOL
from model.worker.logs import configure_logging, of_pass, one_line
from model.worker.mailbox import Mailbox, Pass
from model.worker.memory import device_memory, gpu_uuid
from model.worker.passes import (
    Encoder,
    Fault,
    Interruptions,
    import_loader,
    judge,
    release_memory,
    run_pass,
    start_watch,
)

MAX_BLOCKS_AHEAD = 2
"""Blocks that a CUDA device is given ahead of the one it computes, in long passes: one that is ready when it
comes to its end, and one more for a launch that takes longer. Not measured."""
LONG_PASS_TOKENS = 2_048
"""From here on a block takes a CUDA device much longer than to launch it takes the CPU (for a model of 2B
parameters and more, some 2 ms against 0.5), so that waiting costs nothing. Not measured."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PROCESS_NAME = b"laneway-worker"  # the kernel shows 15 bytes

log = logging.getLogger("laneway.worker")


def main(fd: int, urgent_fd: int, *, log_json: bool = False) -> NoReturn:
    """Serve the sockets that were inherited as ``fd`` and ``urgent_fd``; never returns."""
    _ignore_shutdown_signals()
    _die_with_parent()
    configure_logging(as_json=log_json)
    faulthandler.enable()
    with socket.socket(fileno=fd) as gateway, socket.socket(fileno=urgent_fd) as urgent:
        gateway.set_inheritable(False)
        urgent.set_inheritable(False)
        exit_code = serve(Mailbox(gateway, urgent))
    # Nothing here needs tearing down, and a device in an error state can hang in it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def serve(mailbox: Mailbox) -> int:
    """Load what the first frame says, then answer passes; returns the exit code."""
    try:
        load = mailbox.next()
        if not isinstance(load, frames.Load):
            raise frames.FrameError(f"the first frame must be a Load, not a {_name(load)}")
        _run_on(load.cpu)
        encoder = _load(load, mailbox)
        if encoder is None:
            return EXIT_LOAD_FAILED
        return Answerer(encoder, load.options.device, mailbox).answer_passes()
    except _DeviceLostError:
        return EXIT_DEVICE_LOST
    except frames.FrameError as error:
        log.error("%s", error)
        return EXIT_PROTOCOL
    except (EOFError, ConnectionError):
        return 0  # the gateway is gone


def _name(message: Pass | frames.ToWorker) -> str:
    return "Run" if isinstance(message, Pass) else type(message).__name__


def _load(load: frames.Load, mailbox: Mailbox) -> Encoder | None:
    def on_stage(text: str) -> None:
        mailbox.send(frames.Stage(text=text))

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
        mailbox.send(frames.LoadFailed(message=one_line(message)))
        return None
    # torch and the model are some hundred thousand objects that stay: a full collection would look through
    # them all in the middle of a pass.
    gc.collect()
    gc.freeze()
    device = load.options.device
    mailbox.send(frames.Ready(info=encoder.info, gpu_uuid=gpu_uuid(device), memory=device_memory(device)))
    return encoder


class _DeviceLostError(BaseException):
    """Every call to the device fails from here on.

    No ``Exception``: raised in a pass that interrupts, it has to get through the one that is interrupted.
    """


class Answerer:
    """Owns a loaded encoder, and answers the passes in a mailbox with it."""

    def __init__(self, encoder: Encoder, device: str, mailbox: Mailbox) -> None:
        """Take the encoder over.

        Args:
            encoder: Loaded and warm.
            device: Where it computes, as in ``LoadOptions.device``.
            mailbox: Where passes come from and answers go.
        """
        self._encoder = encoder
        self._device = device
        self._mailbox = mailbox

    def answer_passes(self) -> int:
        """Answer one pass after the other; returns the exit code when told to stop.

        Raises:
            EOFError, ConnectionError: The gateway is gone.
            FrameError: It sent what must not come.
            _DeviceLostError: Nothing more can be computed; the pass is not answered.
        """
        while True:
            match self._mailbox.next():
                case Pass() as one:
                    self._answer(one)
                case frames.Stop():
                    return 0
                case frames.Load():
                    raise frames.FrameError("a second Load came")

    def _answer(self, one: Pass) -> None:
        interruptions = Interruptions()
        points = None if one.is_urgent else self._safepoints(one, interruptions)
        self._mailbox.send(*self._compute(one, points, interruptions, start_watch()))

    def _safepoints(self, one: Pass, interruptions: Interruptions) -> Safepoints:
        return Safepoints(
            on_safepoint=functools.partial(self._let_urgent_run, interruptions),
            max_blocks_ahead=MAX_BLOCKS_AHEAD if one.num_tokens >= LONG_PASS_TOKENS else None,
        )

    def _let_urgent_run(self, interruptions: Interruptions) -> None:
        """Run the urgent passes that wait and may interrupt. Those that come meanwhile wait for a block."""
        self._mailbox.look()
        for _ in range(self._mailbox.num_urgent):
            elapsed_s = start_watch(self._device)
            urgent = self._mailbox.next_interrupting()
            if urgent is None:
                return
            message, body = self._compute(urgent, None, Interruptions(), elapsed_s)
            if isinstance(message, frames.Failed) and message.is_out_of_memory:
                # Beside the other there is no room for it. Alone there may be.
                self._mailbox.put_back(replace(urgent, may_interrupt=False))
            else:
                try:
                    self._mailbox.send(message, body)
                except ConnectionError as error:
                    self._mailbox.close(error)
            interruptions.add(elapsed_s())

    def _compute(
        self,
        one: Pass,
        points: Safepoints | None,
        interruptions: Interruptions,
        elapsed_s: Callable[[], float],
    ) -> tuple[frames.Rows | frames.Failed, memoryview]:
        """Run one pass; returns its answer. Raises ``_DeviceLostError`` alone."""
        extra = of_pass(os.getpid(), one.pass_id)
        try:
            result = run_pass(
                self._encoder, one.features, points=points, interruptions=interruptions, elapsed_s=elapsed_s
            )
        except Exception as error:
            log.exception("pass %d failed (%d inputs)", one.pass_id, len(one.features), extra=extra)
            fault, error_type = judge(error, self._device), type(error).__name__
        else:
            rows = frames.Rows(
                pass_id=one.pass_id,
                num_rows=result.rows.shape[0],
                dimension=result.rows.shape[1],
                device_s=result.device_s,
                nonfinite_rows=result.nonfinite_rows,
                num_interruptions=result.num_interruptions,
                interrupted_s=result.interrupted_s,
                num_padding_tokens=result.num_padding_tokens,
                memory=device_memory(self._device),
            )
            return rows, result.rows.reshape(-1).view(np.uint8).data
        if fault is Fault.DEVICE_LOST:
            log.critical(
                "%s fails every call from here on; the process ends to get a new one",
                self._device,
                extra=extra,
            )
            raise _DeviceLostError
        is_out_of_memory = fault is Fault.OUT_OF_MEMORY
        if is_out_of_memory:  # here, not above: the exception's traceback holds the tensors of the pass
            gc.collect()
            release_memory(self._device)
        failed = frames.Failed(
            pass_id=one.pass_id,
            error_type=error_type,
            is_out_of_memory=is_out_of_memory,
            memory=device_memory(self._device),
        )
        return failed, memoryview(b"")


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
