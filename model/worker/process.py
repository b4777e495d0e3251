"""A worker in a process of its own, supervised: what dies is started again, what hangs is killed.

Rule 1: one task owns the process, its socket and the state. ``run`` hands it a job and waits; while the owner
        waits for one (``READY``), ``run`` begins to send it in the owner's place, which is then woken.
Rule 2: every job ends in a result or an error, whatever happens to the process or to the worker.
Rule 3: one worker is one model: a restart that finds other files has failed.
Rule 4: nothing here imports torch: a fault of the device must not be able to reach the gateway.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from model.errors import (
    CheckpointError,
    PassFailedError,
    PassOutOfMemoryError,
    PassTimeoutError,
    WorkerDiedError,
)
from model.types import Features, ModelInfo, PassResult
from model.worker import frames
from model.worker.child import Child, describe_exit
from model.worker.memory import rss_bytes
from model.worker.passes import DEFAULT_LOADER
from model.worker.protocol import LoadOptions, OnStage, WorkerStatistics

_EXIT_GRACE_S = 1.0
"""A process whose socket has ended is gone within milliseconds, or it is killed."""
_SHORT_FINGERPRINT = 12
"""Digits of a fingerprint that are enough to tell two apart in a log."""
_FIRST_STAGE = "starting the process"
"""What a loading process does until it tells what it does."""

log = logging.getLogger("laneway.worker")


class WorkerState(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    """Not ready for the first time yet."""
    READY = "ready"
    """Loaded and idle."""
    RUNNING = "running"
    """Loaded, with a pass in flight."""
    RESTARTING = "restarting"
    """The process died and is being replaced."""
    STOPPED = "stopped"
    """Ended for good, by ``stop`` or because the first start failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before a restart, so that a process that dies at every start does not spin."""

    first_s: float = 0.1
    """Before the second restart in a row; the first one is made at once."""
    limit_s: float = 10.0
    """Never longer than this."""

    def delay_s(self, num_deaths: int) -> float:
        """Seconds to wait after ``num_deaths`` deaths without a good pass between them."""
        if num_deaths <= 1:
            return 0.0
        # Beyond 2**60 the exponent means nothing but an overflow some day.
        return min(self.limit_s, self.first_s * 2.0 ** min(num_deaths - 2, 60))


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    pass_id: int
    frame: bytes
    num_inputs: int
    num_tokens: int
    timeout_s: float
    answer: "asyncio.Future[PassResult]"
    is_sent: bool = False

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def __str__(self) -> str:
        return f"a pass of {self.num_inputs} inputs and {self.num_tokens} tokens"


class ProcessWorker:
    """Owns one worker process after the other, and the jobs that were handed to it."""

    def __init__(
        self,
        options: LoadOptions,
        *,
        pass_timeout_s: float = 120.0,
        load_stall_timeout_s: float = 300.0,
        stop_grace_s: float = 2.0,
        cpu: int | None = None,
        log_json: bool = False,
        backoff: Backoff | None = None,
        loader: str = DEFAULT_LOADER,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Describe the worker; ``start`` starts it.

        Args:
            options: What to load.
            pass_timeout_s: A process that has not answered a pass by then is killed and replaced.
            load_stall_timeout_s: A loading process that has told nothing new for so long is killed. It tells
                each of its stages and each tensor, so this bounds a step, however long the whole takes.
            stop_grace_s: An idle process that has not ended by then is killed.
            cpu: Run on this core alone. ``None``: wherever the kernel likes, which was as fast: two workers
                on two cores beside a tokenising gateway, 7,100 tokens/s either way (ratios 0.99 to 1.03).
            log_json: The process logs a JSON object a line instead of text.
            backoff: How long restarts wait. Default: ``Backoff()``.
            loader: Import path of the function that loads the encoder in the process.
            sleep: How restarts wait.
        """
        self._options = options
        self._pass_timeout_s = pass_timeout_s
        self._load_stall_timeout_s = load_stall_timeout_s
        self._stop_grace_s = stop_grace_s
        self._cpu = cpu
        self._log_json = log_json
        self._backoff = backoff or Backoff()
        self._loader = loader
        self._sleep = sleep

        self._state = WorkerState.STARTING
        self._owner: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[ModelInfo] | None = None
        self._child: Child | None = None
        self._info: ModelInfo | None = None
        """What the first process loaded; those after it must load the same."""
        self._jobs: deque[_Job] = deque()
        """The first one is in flight while the state is RUNNING."""
        self._wake = asyncio.Event()
        """Set when the idle owner must look again: a job came, or the process ended."""
        self._settled = asyncio.Event()
        """Set while ``wait_ready`` need not wait: the worker is ready, or stopped."""

        self._pass_ids = itertools.count(1)
        self._num_deaths = 0
        """Since the last good pass."""
        self._num_restarts = 0
        self._num_passes = 0

    @property
    def state(self) -> WorkerState:
        """What the worker is doing."""
        return self._state

    async def start(self, on_stage: OnStage) -> ModelInfo:
        """Start the process and load the model; returns when the first pass may come.

        Args:
            on_stage: Told on the event loop what the loading process is doing.

        Raises:
            CheckpointError: The model cannot be loaded, or the process died or hung over it. Nothing is
                left running.
            WorkerDiedError: ``stop`` was called meanwhile.
        """
        assert self._owner is None, "a worker is started once"
        self._loaded = asyncio.get_running_loop().create_future()
        self._owner = asyncio.create_task(self._own(on_stage), name=f"worker {self._options.source}")
        self._owner.add_done_callback(self._close)
        try:
            return await self._loaded
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def wait_ready(self) -> None:
        """Return when a pass may be run: at once, or after a restart has finished.

        Raises:
            WorkerDiedError: The worker was stopped; it will never be ready again.
        """
        while not self._is_ready:
            if self._state is WorkerState.STOPPED:
                raise WorkerDiedError("the worker was stopped")
            await self._settled.wait()

    async def run(self, features: Sequence[Features], *, timeout_s: float | None = None) -> PassResult:
        """Run one pass. A second one that comes before the answer waits its turn.

        Args:
            features: What to encode together.
            timeout_s: Ends the process earlier than ``pass_timeout_s``, counted from when the pass is sent.

        Raises:
            WorkerDiedError: The process ended, or is not there; ``wait_ready`` tells when it is back.
            PassTimeoutError: No answer in time; the process was killed.
            PassOutOfMemoryError: The pass did not fit; a smaller one may.
            PassFailedError: The encoder raised; the process lives.
        """
        if not self._is_ready:
            raise WorkerDiedError(f"the worker is not ready: {self._state}")
        pass_id = next(self._pass_ids)
        job = _Job(
            pass_id=pass_id,
            frame=frames.pack_run(pass_id, features),
            num_inputs=len(features),
            num_tokens=sum(one.num_tokens for one in features),
            timeout_s=self._pass_timeout_s if timeout_s is None else min(timeout_s, self._pass_timeout_s),
            answer=asyncio.get_running_loop().create_future(),
        )
        self._jobs.append(job)
        if self._state is WorkerState.READY and self._child is not None:
            # Woken first, the owner would send it turns of the event loop later.
            self._send(self._child, job)
        self._wake.set()
        return await job.answer

    async def stop(self) -> None:
        """End the process, and with it the worker. A pass in flight is abandoned with ``WorkerDiedError``."""
        if self._owner is None:
            self._enter(WorkerState.STOPPED)
            return
        self._owner.cancel()
        await asyncio.wait((self._owner,))

    def statistics(self) -> WorkerStatistics:
        """A snapshot of the worker's state, and of its process's memory."""
        pid = None if self._child is None else self._child.pid
        return WorkerStatistics(
            is_ready=self._is_ready,
            pid=pid,
            num_restarts=self._num_restarts,
            num_passes=self._num_passes,
            # Read when asked for: with torch loaded it takes 150 us, too much for every pass.
            rss_bytes=None if pid is None else rss_bytes(pid),
        )

    def __repr__(self) -> str:
        pid = "no process" if self._child is None else f"pid {self._child.pid}"
        return (
            f"<ProcessWorker {self._options.source}: {self._state}, {pid}, "
            f"{self._num_passes} passes, {self._num_restarts} restarts>"
        )

    @property
    def _is_ready(self) -> bool:
        return self._state in (WorkerState.READY, WorkerState.RUNNING)

    async def _own(self, on_stage: OnStage) -> None:
        """Keep a process alive until cancelled. Raises ``CheckpointError`` if the first cannot load."""
        while True:
            try:
                await self._live_once(on_stage)
            except (CheckpointError, WorkerDiedError) as error:
                if self._state is WorkerState.STARTING:
                    raise
                await self._wait_to_restart(error)
            self._num_restarts += 1
            on_stage = _log_stage

    async def _wait_to_restart(self, error: Exception) -> None:
        self._num_deaths += 1
        delay_s = self._backoff.delay_s(self._num_deaths)
        log.error("%s; starting another %s", error, f"in {delay_s:.1f} s" if delay_s else "now")
        if delay_s:
            await self._sleep(delay_s)

    async def _live_once(self, on_stage: OnStage) -> NoReturn:
        """Start one process and see it through to its end, which is always an exception."""
        child = self._spawn()
        child.exited.add_done_callback(lambda _: self._wake.set())
        self._child = child
        try:
            self._become_ready(child, (await self._load(child, on_stage)).info)
            await self._serve(child)
        except asyncio.CancelledError:
            # Only an idle process listens; one that loads or computes would let the grace pass in vain.
            await child.end(grace_s=self._stop_grace_s if self._state is WorkerState.READY else 0.0)
            raise
        except WorkerDiedError as error:
            # Callers first: a process that hangs in its driver may take long to die.
            self._lose_jobs(error)
            await child.kill()
            raise
        except CheckpointError:
            await child.kill()
            raise
        finally:
            self._child = None
            child.discard()

    def _spawn(self) -> Child:
        try:
            return Child(num_threads=self._options.num_threads, log_json=self._log_json)
        except OSError as error:
            raise CheckpointError(f"cannot start a worker process: {error}") from error

    async def _load(self, child: Child, on_stage: OnStage) -> frames.Ready:
        load = frames.Load(options=self._options, loader=self._loader, cpu=self._cpu)
        stage = _FIRST_STAGE
        try:
            await child.send(frames.pack_head(load))
            while True:
                message = await self._receive_while_loading(child, stage)
                match message:
                    case frames.Stage():
                        stage = message.text
                        on_stage(stage)
                    case frames.Ready():
                        return message
                    case frames.LoadFailed():
                        raise CheckpointError(message.message)
                    case _:
                        raise frames.FrameError(f"a loading worker sent {type(message).__name__}")
        except (EOFError, OSError, frames.FrameError) as error:
            how = await _describe_end(child, error)
            raise CheckpointError(
                f"cannot load {self._options.source}: the worker process (pid {child.pid}) {how} "
                f"while it loaded; its own log lines say more"
            ) from error

    async def _receive_while_loading(self, child: Child, stage: str) -> frames.ToGateway:
        try:
            async with asyncio.timeout(self._load_stall_timeout_s):
                message, _ = await child.receive()
        except TimeoutError:
            raise CheckpointError(
                f"cannot load {self._options.source}: the worker process (pid {child.pid}) hung for "
                f'{self._load_stall_timeout_s:g} s in "{stage}" and was killed; look at the disk that holds '
                f"{self._options.folder} and at the device {self._options.device}"
            ) from None
        return message

    def _become_ready(self, child: Child, info: ModelInfo) -> None:
        if self._info is None:
            self._info = info
        elif info.fingerprint != self._info.fingerprint:
            # Its vectors would be stored beside those of the first, and nobody could tell them apart.
            raise CheckpointError(
                f"the restarted worker process (pid {child.pid}) loaded another model, "
                f"{_shortened(info)} instead of {_shortened(self._info)}: the checkpoint's files in "
                f"{self._options.folder} were changed; restart the server to serve them"
            )
        if self._state is WorkerState.RESTARTING:
            log.warning("the worker is ready again (pid %d)", child.pid)
        self._enter(WorkerState.READY)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(info)

    async def _serve(self, child: Child) -> NoReturn:
        """Run job after job; raises ``WorkerDiedError`` when the process ends or must be ended."""
        while not child.exited.done():
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                continue
            job = self._jobs[0]
            # One whose caller went away while it waited is not run; one that was sent will be answered.
            if job.is_sent or not job.answer.done():
                await self._run_job(child, job)
                self._enter(WorkerState.READY)
            self._jobs.popleft()
        self._enter(WorkerState.RESTARTING)
        raise _death(child, describe_exit(await child.wait()), "while it was idle")

    async def _run_job(self, child: Child, job: _Job) -> None:
        try:
            async with asyncio.timeout(job.timeout_s):
                result = await self._exchange(child, job)
        except PassFailedError as error:
            job.fail(error)
        except TimeoutError:
            self._enter(WorkerState.RESTARTING)
            raise PassTimeoutError(
                f"the worker process (pid {child.pid}) had not answered {job} "
                f"after {job.timeout_s:g} s and was killed"
            ) from None
        except (EOFError, OSError, frames.FrameError) as error:
            self._enter(WorkerState.RESTARTING)
            raise _death(child, await _describe_end(child, error), f"during {job}") from error
        else:
            self._num_deaths = 0
            self._num_passes += 1
            if not job.answer.done():
                job.answer.set_result(result)

    async def _exchange(self, child: Child, job: _Job) -> PassResult:
        info = self._info
        assert info is not None, "a pass runs on a loaded model"
        if not job.is_sent:
            self._send(child, job)
        await child.drain()
        message, body = await child.receive()
        match message:
            case frames.Rows(pass_id=job.pass_id, num_rows=job.num_inputs, dimension=info.dimension):
                return PassResult(
                    rows=frames.unpack_rows(message, body),
                    device_s=message.device_s,
                    nonfinite_rows=message.nonfinite_rows,
                )
            case frames.Failed(pass_id=job.pass_id):
                error_class = PassOutOfMemoryError if message.is_out_of_memory else PassFailedError
                raise error_class(f"the encoder raised {message.error_type} in {job}")
            case _:
                raise frames.FrameError(f"{message!r} is no answer to pass {job.pass_id}")

    def _send(self, child: Child, job: _Job) -> None:
        self._enter(WorkerState.RUNNING)
        job.is_sent = True
        child.write(job.frame)

    def _lose_jobs(self, error: WorkerDiedError) -> None:
        """Fail the job in flight with ``error``, and those behind it with one that says they did not run."""
        for job in self._jobs:
            job.fail(error)
            error = WorkerDiedError("the worker process died before the pass was run")
        self._jobs.clear()

    def _enter(self, state: WorkerState) -> None:
        self._state = state
        if self._is_ready or state is WorkerState.STOPPED:
            self._settled.set()
        else:
            self._settled.clear()

    def _close(self, owner: "asyncio.Task[None]") -> None:
        """Settle everything that still waits, when the owner has ended."""
        self._enter(WorkerState.STOPPED)
        self._lose_jobs(WorkerDiedError("the worker was stopped"))
        error = None if owner.cancelled() else owner.exception()
        assert self._loaded is not None
        if not self._loaded.done():
            self._loaded.set_exception(error or WorkerDiedError("the worker was stopped"))
        elif error is not None:
            log.critical("the worker is gone for good, by a mistake of ours", exc_info=error)


async def _describe_end(child: Child, error: Exception) -> str:
    """Say how a process ended whose socket did, or what it sent that was no frame."""
    if isinstance(error, frames.FrameError):
        return f"sent what is no answer ({error})"
    try:
        async with asyncio.timeout(_EXIT_GRACE_S):
            return describe_exit(await child.wait())
    except TimeoutError:
        return "closed its connection"


def _shortened(info: ModelInfo) -> str:
    return info.fingerprint[:_SHORT_FINGERPRINT]


def _death(child: Child, how: str, when: str) -> WorkerDiedError:
    return WorkerDiedError(f"the worker process (pid {child.pid}) {how} {when}")


def _log_stage(text: str) -> None:
    log.debug("restarting: %s", text)
