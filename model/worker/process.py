"""A worker in a process of its own, supervised: what dies is started again, what hangs is killed.

Several passes may be out. The process computes the urgent ones first, in the order they were sent, then the
others in theirs; an urgent one that comes later may run in the middle of another (see ``main.py``). So of
all that are out two at most can have begun, and what follows from that is decided in ``Outstanding``.

Rule 1: ``run`` sends in the call, and an answer is given in the callback that received it: no task is woken
        in between. One task owns the process's beginning and end.
Rule 2: every job ends in a result or an error, whatever happens to the process or to the worker.
Rule 3: one worker is one model: a restart that finds other files has failed.
Rule 4: nothing here imports torch: a fault of the device must not be able to reach the gateway.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from model.errors import (
    CheckpointError,
    PassFailedError,
    PassNotBegunError,
    PassOutOfMemoryError,
    PassTimeoutError,
    WorkerDiedError,
)
from model.types import Features, ModelInfo, PassResult
from model.worker import frames
from model.worker.child import Child, describe_exit
from model.worker.memory import rss_bytes
from model.worker.outstanding import Job, Outstanding
from model.worker.passes import DEFAULT_LOADER
from model.worker.protocol import DeviceMemory, LoadOptions, OnStage, WorkerStatistics

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
    """Loaded, with passes out."""
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


class ProcessWorker:
    """Owns one worker process after the other, and the jobs that were handed to it."""

    can_interrupt = True

    def __init__(
        self,
        options: LoadOptions,
        *,
        pass_timeout_s: float = 120.0,
        load_stall_timeout_s: float = 300.0,
        stop_grace_s: float = 2.0,
        cpu: int | None = None,
        number: int | None = None,
        log_json: bool = False,
        backoff: Backoff | None = None,
        loader: str = DEFAULT_LOADER,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Describe the worker; ``start`` starts it.

        Args:
            options: What to load.
            pass_timeout_s: A process that works on a pass for longer is killed and replaced.
            load_stall_timeout_s: A loading process that has told nothing new for so long is killed. It tells
                each of its stages and each tensor, so this bounds a step, however long the whole takes.
            stop_grace_s: An idle process that has not ended by then is killed.
            cpu: Run on this core alone. ``None``: wherever the kernel likes, which was as fast: two workers
                on two cores beside a tokenising gateway, 7,100 tokens/s either way (ratios 0.99 to 1.03).
            number: Which of its gateway's workers it is, in log lines: a process's id changes with every
                restart, this one does not. ``None``: the only one.
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
        self._number = number
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
        self._outstanding = Outstanding()
        self._has_hung: asyncio.Future[None] | None = None
        """Done when the process that is served owes an answer for too long."""
        self._watchdog: asyncio.TimerHandle | None = None
        """Rings at the deadline, or before it and then looks again: it is not wound anew with every pass."""
        self._settled = asyncio.Event()
        """Set while ``wait_ready`` need not wait: the worker is ready, or stopped."""

        self._pass_ids = itertools.count(1)
        self._num_deaths = 0
        """Since the last good pass."""
        # Counted here and not in the process: they go on when another one takes its place.
        self._num_restarts = 0
        self._num_passes = 0
        self._num_out_of_memory = 0
        self._device_s = 0.0
        self._gpu_uuid: str | None = None
        self._memory: DeviceMemory | None = None
        """Of the process that lives now."""

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

    @property
    def is_ready(self) -> bool:
        """Whether a pass may be run now."""
        return self._state in (WorkerState.READY, WorkerState.RUNNING)

    async def wait_ready(self) -> None:
        """Return when a pass may be run: at once, or after a restart has finished.

        Raises:
            WorkerDiedError: The worker was stopped; it will never be ready again.
        """
        while not self.is_ready:
            if self._state is WorkerState.STOPPED:
                raise WorkerDiedError("the worker was stopped")
            await self._settled.wait()

    async def run(
        self,
        features: Sequence[Features],
        *,
        timeout_s: float | None = None,
        is_urgent: bool = False,
        may_interrupt: bool = False,
    ) -> PassResult:
        """Run one pass. It is sent at once; the process comes to it when those before it are done.

        Args:
            features: What to encode together. Pixels must not change until the pass is answered.
            timeout_s: Ends the process earlier than ``pass_timeout_s``. Counted from when it can have begun
                the pass; time for interruptions is added.
            is_urgent: Run it before those that are not, and let nothing interrupt it.
            may_interrupt: Being urgent, run it in the middle of one that is not, if one is under way.

        Raises:
            PassNotBegunError: The process is not there, or ended before it came to the pass;
                ``wait_ready`` tells when it is back.
            WorkerDiedError: The process ended, possibly over this pass.
            PassTimeoutError: No answer in time; the process was killed.
            PassOutOfMemoryError: The pass did not fit; a smaller one may.
            PassFailedError: The encoder raised; the process lives.
        """
        if not self.is_ready or self._child is None:
            raise PassNotBegunError(f"the worker is not ready: {self._state}")
        loop = asyncio.get_running_loop()
        job = Job(
            pid=self._child.pid,
            pass_id=next(self._pass_ids),
            num_inputs=len(features),
            num_tokens=sum(one.num_tokens for one in features),
            timeout_s=self._pass_timeout_s if timeout_s is None else min(timeout_s, self._pass_timeout_s),
            is_urgent=is_urgent,
            answer=loop.create_future(),
        )
        frame = frames.pack_run(job.pass_id, features, is_urgent=is_urgent, may_interrupt=may_interrupt)
        self._child.send(frame, is_urgent=is_urgent)
        self._outstanding.add(job, now_s=loop.time())
        self._enter(WorkerState.RUNNING)
        self._wind_watchdog()
        return await job.answer

    async def stop(self) -> None:
        """End the process, and with it the worker. Passes that are out fail with ``WorkerDiedError``."""
        if self._owner is None:
            self._enter(WorkerState.STOPPED)
            return
        self._owner.cancel()
        await asyncio.wait((self._owner,))

    def statistics(self) -> WorkerStatistics:
        """A snapshot of the worker's state, and of its process's memory."""
        pid = None if self._child is None else self._child.pid
        return WorkerStatistics(
            is_ready=self.is_ready,
            pid=pid,
            num_restarts=self._num_restarts,
            num_passes=self._num_passes,
            # Read when asked for: with torch loaded it takes 150 us, too much for every pass.
            rss_bytes=None if pid is None else rss_bytes(pid),
            device=self._options.device,
            gpu_uuid=self._gpu_uuid,
            device_s=self._device_s,
            num_out_of_memory=self._num_out_of_memory,
            memory=self._memory,
        )

    def __repr__(self) -> str:
        pid = "no process" if self._child is None else f"pid {self._child.pid}"
        return (
            f"<ProcessWorker {self._options.source}: {self._state}, {pid}, "
            f"{self._num_passes} passes, {self._num_restarts} restarts>"
        )

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
            on_stage = self._log_stage

    async def _wait_to_restart(self, error: Exception) -> None:
        self._num_deaths += 1
        delay_s = self._backoff.delay_s(self._num_deaths)
        log.error(
            "%s; starting another%s %s",
            error,
            "" if self._number is None else f" as worker {self._number}",
            f"in {delay_s:.1f} s" if delay_s else "now",
            extra=self._keys(error),
        )
        if delay_s:
            await self._sleep(delay_s)

    async def _live_once(self, on_stage: OnStage) -> NoReturn:
        """Start one process and see it through to its end, which is always an exception."""
        child = self._spawn()
        self._child = child
        try:
            self._become_ready(child, await self._load(child, on_stage))
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
            self._child = self._memory = None
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
            child.send([frames.pack_head(load)])
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

    def _become_ready(self, child: Child, ready: frames.Ready) -> None:
        info = ready.info
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
            log.warning("%s is ready again (pid %d)", self._name, child.pid, extra=self._keys(pid=child.pid))
        self._gpu_uuid, self._memory = ready.gpu_uuid, ready.memory
        self._enter(WorkerState.READY)
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(info)

    async def _serve(self, child: Child) -> NoReturn:
        """Take answers until the process ends or must be ended, then raise ``WorkerDiedError``."""
        self._has_hung = asyncio.get_running_loop().create_future()
        child.listen(self._take)
        ends = {child.silenced, child.exited, self._has_hung}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if child.exited.done():
                # What it answered before it ended is still on its way, with the end of the socket behind it.
                await asyncio.wait({child.silenced}, timeout=_EXIT_GRACE_S)
        finally:
            if self._watchdog is not None:
                self._watchdog.cancel()
                self._watchdog = None
        self._enter(WorkerState.RESTARTING)
        begun = self._outstanding.possibly_begun()
        pass_id = begun[0].pass_id if len(begun) == 1 else None
        if child.silenced.done() or child.exited.done():
            error = child.silenced.result() if child.silenced.done() else EOFError()
            when = f"during {_alternatives(begun)}" if begun else "while it was idle"
            how = await _describe_end(child, error)
            raise WorkerDiedError(
                f"the worker process (pid {child.pid}) {how} {when}", pid=child.pid, pass_id=pass_id
            )
        raise PassTimeoutError(
            f"the worker process (pid {child.pid}) had not answered {_alternatives(begun)} "
            f"after {sum(job.timeout_s for job in begun):g} s and was killed",
            pid=child.pid,
            pass_id=pass_id,
        )

    def _take(self, message: frames.ToGateway, body: memoryview) -> None:
        """Give an answer to its job; raises ``FrameError`` at anything else."""
        if not isinstance(message, frames.Rows | frames.Failed):
            raise frames.FrameError(f"a ready worker sent {type(message).__name__}")
        job = self._outstanding.find(message.pass_id)
        if job is None:
            raise frames.FrameError(f"pass {message.pass_id} was answered, but is not out")
        self._memory = message.memory
        if isinstance(message, frames.Failed):
            error_class = PassOutOfMemoryError if message.is_out_of_memory else PassFailedError
            self._num_out_of_memory += message.is_out_of_memory
            told = f"the encoder raised {message.error_type} in {job}"
            job.fail(error_class(told, pid=job.pid, pass_id=job.pass_id))
        else:
            job.succeed(self._result(job, message, body))
            self._num_deaths = 0
            self._num_passes += 1
            self._device_s += message.device_s
        self._outstanding.remove(job, now_s=asyncio.get_running_loop().time())
        if not self._outstanding:
            self._enter(WorkerState.READY)

    def _result(self, job: Job, rows: frames.Rows, body: memoryview) -> PassResult:
        assert self._info is not None, "a pass runs on a loaded model"
        shape, expected = (rows.num_rows, rows.dimension), (job.num_inputs, self._info.dimension)
        if shape != expected:
            raise frames.FrameError(f"rows of shape {shape} are no answer to {job}, which gives {expected}")
        return PassResult(
            rows=frames.unpack_rows(rows, body),
            device_s=rows.device_s,
            nonfinite_rows=rows.nonfinite_rows,
            num_interruptions=rows.num_interruptions,
            interrupted_s=rows.interrupted_s,
            num_padding_tokens=rows.num_padding_tokens,
        )

    def _wind_watchdog(self) -> None:
        """Have the watchdog ring at the deadline, unless it rings before."""
        deadline_s = self._outstanding.deadline_s()
        if deadline_s is None:
            return
        if self._watchdog is not None:
            if self._watchdog.when() <= deadline_s:
                return
            self._watchdog.cancel()
        self._watchdog = asyncio.get_running_loop().call_at(deadline_s, self._ring)

    def _ring(self) -> None:
        # Both loops read their sockets before they run their timers: what has been answered is known here,
        # even if the gateway itself stood still for long.
        self._watchdog = None
        deadline_s = self._outstanding.deadline_s()
        if deadline_s is None:
            return
        if asyncio.get_running_loop().time() < deadline_s:
            self._wind_watchdog()
        elif self._has_hung is not None and not self._has_hung.done():
            self._has_hung.set_result(None)

    def _lose_jobs(self, error: WorkerDiedError) -> None:
        """Fail the jobs that can have begun as ``error`` says, and the others as not begun."""
        begun = self._outstanding.possibly_begun()
        for job in self._outstanding.clear():
            error_class, told = (
                (type(error), str(error))
                if job in begun
                else (PassNotBegunError, "the worker process died before the pass was run")
            )
            # One each, with the number of its own pass.
            job.fail(error_class(told, pid=job.pid, pass_id=job.pass_id))

    def _enter(self, state: WorkerState) -> None:
        self._state = state
        if self.is_ready or state is WorkerState.STOPPED:
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
            log.critical(
                "%s is gone for good, by a mistake of ours", self._name, exc_info=error, extra=self._keys()
            )

    def _log_stage(self, text: str) -> None:
        log.debug("%s restarts: %s", self._name, text, extra=self._keys())

    @property
    def _name(self) -> str:
        return "the worker" if self._number is None else f"worker {self._number}"

    def _keys(self, error: Exception | None = None, *, pid: int | None = None) -> dict[str, object]:
        """Keys of the gateway's JSON line, where a log is searched for a worker, a process or a pass."""
        pass_id = None
        if isinstance(error, WorkerDiedError):
            pid, pass_id = error.pid, error.pass_id
        keys = {"worker": self._number, "worker_pid": pid, "pass": pass_id}
        return {"fields": {key: number for key, number in keys.items() if number is not None}}


async def _describe_end(child: Child, error: Exception) -> str:
    """Say how a process ended whose socket did, or what it sent that was no frame."""
    if isinstance(error, frames.FrameError):
        return f"sent what is no answer ({error})"
    try:
        async with asyncio.timeout(_EXIT_GRACE_S):
            return describe_exit(await child.wait())
    except TimeoutError:
        return "closed its connection"


def _alternatives(jobs: Sequence[Job]) -> str:
    return " or ".join(map(str, jobs))


def _shortened(info: ModelInfo) -> str:
    return info.fingerprint[:_SHORT_FINGERPRINT]
