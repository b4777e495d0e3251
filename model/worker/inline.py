"""A worker without a process: the encoder in one thread of this one. For tests and for debugging.

It says and raises what ``ProcessWorker`` does, but a crash of the encoder is a crash of everything, and a
pass that hangs cannot be ended.
"""

import asyncio
import gc
import itertools
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from model.errors import CheckpointError, PassFailedError, PassOutOfMemoryError, WorkerDiedError
from model.types import Features, ModelInfo, PassResult
from model.worker.logs import of_pass, one_line
from model.worker.memory import device_memory, gpu_uuid, rss_bytes
from model.worker.passes import (
    DEFAULT_LOADER,
    Encoder,
    Fault,
    import_loader,
    judge,
    release_memory,
    run_pass,
)
from model.worker.protocol import LoadOptions, OnStage, WorkerStatistics

log = logging.getLogger("laneway.worker")


class InlineWorker:
    """Owns one thread, and the encoder that lives in it."""

    can_interrupt = False

    def __init__(self, options: LoadOptions, *, loader: str = DEFAULT_LOADER) -> None:
        """Describe the worker; ``start`` starts it.

        Args:
            options: What to load.
            loader: Import path of the function that loads the encoder.
        """
        self._options = options
        self._loader = loader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="laneway-worker")
        self._encoder: Encoder | None = None
        self._settled = asyncio.Event()
        """Set when the worker is ready, or stopped."""
        self._is_stopped = False
        self._answers: set[asyncio.Future[PassResult]] = set()
        """Of passes that were handed to the thread."""
        self._pass_ids = itertools.count(1)
        self._num_passes = 0
        self._num_out_of_memory = 0
        self._device_s = 0.0

    async def start(self, on_stage: OnStage) -> ModelInfo:
        """Load the model in the thread; returns when the first pass may come.

        Args:
            on_stage: Told on the event loop what the loading thread is doing.

        Raises:
            CheckpointError: The model cannot be loaded.
        """
        loop = asyncio.get_running_loop()

        def load() -> Encoder:
            def pass_stage(text: str) -> None:
                loop.call_soon_threadsafe(on_stage, text)

            return import_loader(self._loader)(self._options, pass_stage)

        try:
            encoder = await loop.run_in_executor(self._thread, load)
        except CheckpointError:
            await self.stop()
            raise
        except Exception as error:
            await self.stop()
            raise CheckpointError(
                one_line(f"cannot load {self._options.source}: {type(error).__name__}: {error}")
            ) from error
        self._encoder = encoder
        self._settled.set()
        return encoder.info

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded, and the worker was not stopped."""
        return self._state == "ready"

    async def wait_ready(self) -> None:
        """Return when the model is loaded; raises ``WorkerDiedError`` once the worker was stopped."""
        await self._settled.wait()
        if self._is_stopped:
            raise WorkerDiedError("the worker was stopped")

    async def run(
        self,
        features: Sequence[Features],
        *,
        timeout_s: float | None = None,
        is_urgent: bool = False,
        may_interrupt: bool = False,
    ) -> PassResult:
        """Run one pass. Those that come before the answer wait their turn, urgent ones, too.

        A thread cannot be ended, so ``timeout_s`` is not heeded.

        Raises:
            WorkerDiedError: The worker was not started, or was stopped.
            PassOutOfMemoryError: The pass did not fit; a smaller one may.
            PassFailedError: The encoder raised.
        """
        if self._is_stopped or self._encoder is None:
            raise WorkerDiedError(f"the worker is not ready: {self._state}")
        loop = asyncio.get_running_loop()
        answer = loop.run_in_executor(
            self._thread, _run, self._encoder, self._options.device, next(self._pass_ids), features
        )
        self._answers.add(answer)
        try:
            result = await answer
        except PassOutOfMemoryError:
            self._num_out_of_memory += 1
            raise
        except asyncio.CancelledError:
            if self._is_stopped:
                raise WorkerDiedError("the worker was stopped") from None
            raise
        finally:
            self._answers.discard(answer)
        self._num_passes += 1
        self._device_s += result.device_s
        return result

    async def stop(self) -> None:
        """End the worker. A pass in flight is abandoned: the thread ends after it."""
        self._is_stopped = True
        self._settled.set()
        for answer in self._answers:
            answer.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def statistics(self) -> WorkerStatistics:
        """A snapshot of the worker's state; process and memory are this process's own."""
        return WorkerStatistics(
            is_ready=self.is_ready,
            pid=os.getpid(),
            num_restarts=0,
            num_passes=self._num_passes,
            rss_bytes=rss_bytes(),
            device=self._options.device,
            gpu_uuid=None if self._encoder is None else gpu_uuid(self._options.device),
            device_s=self._device_s,
            num_out_of_memory=self._num_out_of_memory,
            memory=None if self._encoder is None else device_memory(self._options.device),
        )

    def __repr__(self) -> str:
        return f"<InlineWorker {self._options.source}: {self._state}, {self._num_passes} passes>"

    @property
    def _state(self) -> str:
        if self._is_stopped:
            return "stopped"
        return "starting" if self._encoder is None else "ready"


def _run(encoder: Encoder, device: str, pass_id: int, features: Sequence[Features]) -> PassResult:
    pid = os.getpid()
    try:
        return run_pass(encoder, features)
    except Exception as error:
        log.exception("pass %d failed (%d inputs)", pass_id, len(features), extra=of_pass(pid, pass_id))
        fault, error_type = judge(error, device), type(error).__name__
    # Outside the block above: the traceback in it holds the tensors of the pass.
    num_tokens = sum(one.num_tokens for one in features)
    message = (
        f"the encoder raised {error_type} in pass {pass_id} ({len(features)} inputs, {num_tokens} tokens)"
    )
    if fault is Fault.OUT_OF_MEMORY:
        gc.collect()
        release_memory(device)
        raise PassOutOfMemoryError(message, pid=pid, pass_id=pass_id)
    raise PassFailedError(message, pid=pid, pass_id=pass_id)
