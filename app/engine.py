"""One served model: prepare, queue, run. Joins the batching and the model room, and knows no HTTP.

The engine owns the worker processes, the batcher and the preparation before it, from the first download to
the last drained pass. Inputs go down once (prepare, admit, run), rows come up once, in input order.
"""

import asyncio
import logging
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from app.calibration import measure_passes
from app.devices import Placement, place_workers, usable_cores
from app.logs import logs_as_json
from app.pass_limits import batching_limits
from app.preparation import Preparation
from app.runner import WorkerRunner
from app.settings import ImageSettings, Settings
from app.threads import in_daemon_thread
from batching import (
    Batcher,
    CostFigures,
    CostModel,
    Lane,
    LaneLoad,
    Limits,
    PassReport,
    SchedulerStatistics,
    Shape,
    WorkItem,
)
from model import (
    Checkpoint,
    CheckpointError,
    DecodedImage,
    EmbeddingInput,
    ImageSpec,
    ModelInfo,
    Preparer,
    find_checkpoint,
    names_of,
)
from model.images import Alpha, DecoderStatistics, ImageDecoder, ImageLimits, Orientation
from model.worker import (
    ImageOptions,
    LoadOptions,
    OnStage,
    ProcessWorker,
    Quantization,
    Rope,
    Worker,
    WorkerStatistics,
)

logger = logging.getLogger(__name__)

READY = "ready"
RESTARTING = "restarting"
"""No worker lives at this moment: requests wait, and load balancers had better send them elsewhere."""
DRAINING = "draining"
FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """The answer to one request, in input order."""

    rows: npt.NDArray[np.float32]
    """``[N, D]``."""
    num_tokens: tuple[int, ...]
    """Tokens computed for each input, those that stand for images included."""
    num_image_tokens: tuple[int, ...]
    """Tokens that stand for images in each input."""
    num_images: int
    """Images of all inputs together."""
    modalities: tuple[str, ...]
    """What each input held: ``text``, ``image`` or ``text_image``."""
    num_dropped_tokens: tuple[int, ...]
    """Tokens that truncation took from each input; 0 where it was left whole."""
    queue_s: float
    """Longest time that an input of the request waited."""
    compute_s: float
    """Device time of the passes that the request's inputs ran in, added up."""
    worker_wait_s: float = 0.0
    """Longest time that one of these passes was with its worker beyond its device time."""
    prepare_s: float = 0.0
    """From inputs to features, the wait for a tokeniser included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """How far the engine is."""

    stage: str
    """Such as ``"downloading 43%"``, ``"ready"``, ``"restarting"``, ``"draining"`` or ``"failed"``."""
    is_ready: bool
    """Requests are answered now; in ``"restarting"`` they are accepted, and wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """What the engine has done and what waits in it, read at any time."""

    scheduler: SchedulerStatistics
    workers: tuple[WorkerStatistics, ...]
    num_passes: int
    num_items: int
    num_tokens: int
    device_s: float
    """Device time of all passes together."""
    load_s: float
    """How long it took until the first request could be answered."""
    cost: CostFigures
    """What passes are expected to cost, as learned until now."""

    @property
    def mean_pass_items(self) -> float:
        """Inputs in an average pass; 0 before the first."""
        return self.num_items / self.num_passes if self.num_passes else 0.0


class EngineNotReadyError(Exception):
    """The model is not ready to answer; the stage says why."""

    def __init__(self, stage: str) -> None:
        super().__init__(f"the model is not ready: {stage}")
        self.stage = stage


OpenWorker = Callable[[LoadOptions, int], Worker]
"""Makes the worker of one slot; the number is the slot's."""


class Decoder(Protocol):
    """What turns image files into pixels: ``ImageDecoder``, as far as it is known here."""

    async def start(self) -> None:
        """Start; returns when images can be decoded."""
        ...

    async def decode(self, data: bytes, *, is_query: bool, group: Hashable = None) -> DecodedImage:
        """Decode one file; raises ``ImageError``."""
        ...

    async def close(self) -> None:
        """End; whoever still waits gets an error."""
        ...

    def statistics(self) -> DecoderStatistics:
        """A snapshot of what it has done."""
        ...


OpenDecoder = Callable[[ImageSpec], Decoder]
"""Makes the decoder for a model that wants its images so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """What passes were found to take when the model was loaded, and the bounds that follow from it."""

    samples: tuple[tuple[Shape, float], ...]
    """Shapes of passes, and the device seconds that each took."""
    cost: CostModel
    limits: Limits

    @property
    def note(self) -> str | None:
        """What to tell of a bound on passes that this device cannot keep; ``None`` where it can."""
        asked_ms, least_ms = self.limits.max_pass_s * 1000, self.cost.least_bound_s * 1000
        if asked_ms >= least_ms:
            return None
        why = (
            f"twice the {self.cost.fixed_s * 1000:.1f} ms that a pass takes before it does any work"
            if self.cost.floor_s < self.cost.least_bound_s
            else "no pass takes less"
        )
        return (
            f"passes with queries are bounded at {asked_ms:g} ms, which counts as {least_ms:.1f} here: {why}"
        )


@dataclass(slots=True)
class _Served:
    """What exists once the model is loaded."""

    info: ModelInfo
    preparation: Preparation
    batcher: Batcher
    times: PassTimes
    decoder: Decoder | None
    """``None``: the model reads no images."""


@dataclass(slots=True)
class _Totals:
    num_passes: int = 0
    num_items: int = 0
    num_tokens: int = 0
    device_s: float = 0.0

    def add(self, report: PassReport) -> None:
        self.num_passes += 1
        self.num_items += sum(report.num_entries.values())
        self.num_tokens += sum(report.num_tokens.values())
        self.device_s += report.device_s


def _tell_nobody(_news: object) -> None:
    """The listener of those who do not want to know."""


class Engine:
    """Serves one model. Build it, ``start`` it once, ``embed`` any number of times, ``stop`` it once."""

    def __init__(
        self,
        settings: Settings,
        *,
        open_worker: OpenWorker,
        open_decoder: OpenDecoder,
        on_stage: OnStage = _tell_nobody,
        on_pass: Callable[[PassReport], None] = _tell_nobody,
        accept: Callable[[ModelInfo], None] = _tell_nobody,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Describe the engine; ``start`` loads it.

        Args:
            settings: The whole configuration.
            open_worker: Makes the worker of a slot.
            open_decoder: Makes what decodes images, for models that read them.
            on_stage: Told what a start is doing.
            on_pass: Told of every pass that came back.
            accept: Shown the loaded model before it serves; raises ``ModelError`` if it will not do.
            clock: Monotonic seconds.
        """
        self._settings = settings
        self._open_worker = open_worker
        self._open_decoder = open_decoder
        self._on_stage = on_stage
        self._on_pass = on_pass
        self._accept = accept
        self._clock = clock
        self._stage = "starting"
        self._num_admitted = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._names = names_of(settings.model.model)
        self._workers: list[Worker] = []
        self._served: _Served | None = None
        self._load_s = 0.0
        self._totals = _Totals()

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        *,
        on_stage: OnStage = _tell_nobody,
        on_pass: Callable[[PassReport], None] = _tell_nobody,
        accept: Callable[[ModelInfo], None] = _tell_nobody,
    ) -> "Engine":
        """An engine whose workers are processes."""

        def open_process(options: LoadOptions, slot: int) -> Worker:
            return ProcessWorker(
                options,
                number=slot,
                pass_timeout_s=settings.model.pass_timeout_s,
                log_json=logs_as_json(settings.server.log_format),
            )

        return cls(
            settings,
            open_worker=open_process,
            open_decoder=partial(image_decoder, settings.images),
            on_stage=on_stage,
            on_pass=on_pass,
            accept=accept,
        )

    def __repr__(self) -> str:
        return f"<Engine {self._settings.model.model}: {self.state.stage}, {len(self._workers)} workers>"

    # What others may know

    @property
    def state(self) -> EngineState:
        """How far the engine is, true at this moment: without a living worker it is not ready."""
        if self._stage == READY and not any(worker.statistics().is_ready for worker in self._workers):
            return EngineState(stage=RESTARTING, is_ready=False)
        return EngineState(stage=self._stage, is_ready=self._stage == READY)

    @property
    def info(self) -> ModelInfo:
        """The loaded model.

        Raises:
            EngineNotReadyError: It is not loaded yet.
        """
        return self._require_served().info

    @property
    def served_name(self) -> str:
        """The name clients use for the model; it is known from the beginning, and never changes."""
        return self._settings.model.served_name or self._names[0]

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names the checkpoint is known under, from the beginning, too."""
        return tuple(name for name in self._names if name != self.served_name)

    def lane_load(self, lane: Lane) -> LaneLoad:
        """How much waits in a lane: cheap enough to be told with every answer.

        Raises:
            EngineNotReadyError: The model is not loaded yet.
        """
        return self._require_served().batcher.lane_load(lane)

    @property
    def limits(self) -> Limits:
        """Bounds of passes and lanes: what came of the settings and the device, and of its memory since.

        Raises:
            EngineNotReadyError: The model is not loaded yet.
        """
        return self._require_served().batcher.limits

    @property
    def pass_times(self) -> PassTimes:
        """What passes took when the model was loaded.

        Raises:
            EngineNotReadyError: It is not loaded yet.
        """
        return self._require_served().times

    @property
    def can_interrupt(self) -> bool:
        """Whether queries can run in the middle of a pass of documents."""
        return all(worker.can_interrupt for worker in self._workers)

    def statistics(self) -> EngineStatistics:
        """A snapshot of queues, workers and totals.

        Raises:
            EngineNotReadyError: The model is not loaded yet.
        """
        served = self._require_served()
        return EngineStatistics(
            scheduler=served.batcher.statistics(),
            workers=tuple(worker.statistics() for worker in self._workers),
            num_passes=self._totals.num_passes,
            num_items=self._totals.num_items,
            num_tokens=self._totals.num_tokens,
            device_s=self._totals.device_s,
            load_s=self._load_s,
            cost=served.times.cost.figures(),
        )

    # Life

    async def start(self) -> None:
        """Fetch, load, calibrate; returns when requests are answered.

        Raises:
            CheckpointError: The model cannot be had; the message is one line that says what to do.
        """
        started_s = self._clock()
        try:
            self._served = await self._load()
        except BaseException:
            self._enter(FAILED)
            await self._stop_workers()
            raise
        self._load_s = self._clock() - started_s
        self._enter(READY)

    async def _load(self) -> _Served:
        model = self._settings.model
        self._enter("looking for the model")
        loop = asyncio.get_running_loop()

        def tell_stage(stage: str) -> None:
            # Once the loop is closed this raises, which ends a download that goes on in vain.
            loop.call_soon_threadsafe(self._enter, stage)

        def find() -> Checkpoint:
            return find_checkpoint(model.model, revision=model.revision, on_stage=tell_stage)

        checkpoint = await in_daemon_thread(find, name="find-checkpoint")
        placement = place_workers(
            device=model.device,
            dtype=model.dtype,
            num_workers=model.workers,
            weights_bytes=checkpoint.weights_bytes,
        )
        self._workers = [
            self._open_worker(self._load_options(checkpoint, placement, device), slot)
            for slot, device in enumerate(placement.devices)
        ]
        self._enter("starting the workers")
        starting_s = self._clock()
        infos = await self._start_workers()
        restart_s = self._clock() - starting_s
        info = infos[0]
        if any(other.fingerprint != info.fingerprint for other in infos):
            raise CheckpointError(
                f"the workers loaded different files from {checkpoint.folder}; was it changed while loading?"
            )
        self._accept(info)
        if model.max_tokens is not None and model.max_tokens > info.max_tokens:
            logger.warning(
                "max_tokens is %d, but the model reads no more than %d", model.max_tokens, info.max_tokens
            )
        self._enter("measuring pass times")
        limits = batching_limits(self._settings.batching, is_cuda=placement.is_cuda)
        cost = CostModel()
        calibration = await measure_passes(self._workers[0], info, limits)
        limits = replace(limits, max_pass_tokens=calibration.max_pass_tokens)
        cost.fit(calibration.samples)
        logger.info("pass times: %r", cost)
        times = PassTimes(samples=calibration.samples, cost=cost, limits=limits)
        if times.note is not None:
            logger.info("%s", times.note)
        batcher = Batcher(
            [WorkerRunner(worker, cost) for worker in self._workers],
            limits=limits,
            cost=cost,
            name=self.served_name,
            clock=self._clock,
            on_pass=self._observe_pass,
            restart_s=restart_s,
        )
        preparation = Preparation(
            await asyncio.to_thread(Preparer, info),
            limits=limits,
            max_request_tokens=self._settings.limits.max_request_tokens,
            name=f"{self.served_name} preparation",
            clock=self._clock,
        )
        decoder = None
        if info.images is not None:
            self._enter("starting the image decoder")
            decoder = self._open_decoder(info.images.spec)
            await decoder.start()
        batcher.start()
        preparation.start()
        return _Served(info=info, preparation=preparation, batcher=batcher, times=times, decoder=decoder)

    def _load_options(self, checkpoint: Checkpoint, placement: Placement, device: str) -> LoadOptions:
        model, images = self._settings.model, self._settings.images
        return LoadOptions(
            folder=str(checkpoint.folder),
            source=checkpoint.name,
            device=device,
            dtype=placement.dtype,
            num_threads=placement.threads_per_worker,
            family=model.family,
            max_tokens=model.max_tokens,
            matryoshka_dimensions=model.dimensions,
            rope=Rope(model.rope),
            images=ImageOptions(
                min_tokens=images.min_image_tokens,
                max_tokens=images.max_image_tokens,
                orientation=Orientation(images.image_orientation),
                alpha=Alpha(images.image_alpha),
            ),
            quantization=None if model.quantize is None else Quantization(model.quantize),
        )

    async def _start_workers(self) -> list[ModelInfo]:
        # Only the first tells its stages: the others do the same at the same time.
        starts = [
            worker.start(self._enter if slot == 0 else _tell_nobody)
            for slot, worker in enumerate(self._workers)
        ]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in outcomes if isinstance(outcome, ModelInfo)]

    def drain(self) -> None:
        """Admit nothing new from now on; what was admitted goes on."""
        self._enter(DRAINING)

    async def stop(self, *, drain_s: float) -> None:
        """Finish what is in flight, then end the workers.

        Args:
            drain_s: What has no result by then is given up with ``ShuttingDownError``; 0 gives up all.
        """
        self._enter(DRAINING)
        give_up_s = self._clock() + drain_s
        # Images are on their way to some, which are not in the batcher yet.
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._all_answered.wait()
        if self._served is not None:
            await self._served.batcher.stop(max(0.0, give_up_s - self._clock()))
            await self._served.preparation.stop()
            if self._served.decoder is not None:
                await self._served.decoder.close()
        await self._stop_workers()

    async def _stop_workers(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._workers), return_exceptions=True)

    def _enter(self, stage: str) -> None:
        if stage != self._stage and self._stage not in (DRAINING, FAILED):
            self._stage = stage
            self._on_stage(stage)

    def _observe_pass(self, report: PassReport) -> None:
        self._totals.add(report)
        self._on_pass(report)

    def _require_served(self) -> _Served:
        if self._served is None:
            raise EngineNotReadyError(self._stage)
        return self._served

    def decoder_statistics(self) -> DecoderStatistics | None:
        """What the decode processes have done; ``None`` while there are none."""
        decoder = None if self._served is None else self._served.decoder
        return None if decoder is None else decoder.statistics()

    # Work

    @contextmanager
    def admitted(self) -> Generator[None]:
        """Let a request in, whose images are decoded and whose inputs are embedded within the block.

        It is asked once whether the engine takes requests: what was let in is finished, also while draining.

        Raises:
            EngineNotReadyError: The model is still loading, or the engine is draining.
        """
        if self._stage != READY:
            raise EngineNotReadyError(self._stage)
        self._num_admitted += 1
        self._all_answered.clear()
        try:
            yield
        finally:
            self._num_admitted -= 1
            if not self._num_admitted:
                self._all_answered.set()

    async def decode_image(self, file: bytes, *, lane: Lane, group: Hashable = None) -> DecodedImage:
        """Decode an image file of an admitted request to the pixels that the model reads.

        Args:
            file: The whole file.
            lane: A query's image goes ahead of all others.
            group: The request that it belongs to: those of several are decoded in turn.

        Raises:
            EngineNotReadyError: The model is still loading.
            ImageError: The file is no image, or one that is not served.
            DecoderUnavailableError: No process can decode it.
        """
        decoder = self._require_served().decoder
        assert decoder is not None, "only a model that reads images is sent some"
        return await decoder.decode(file, is_query=lane is Lane.QUERY, group=group)

    async def embed(
        self, inputs: Sequence[EmbeddingInput], *, lane: Lane, timeout_s: float | None, tenant: str = ""
    ) -> Embeddings:
        """Embed the inputs of one admitted request.

        Cancelling the call drops whatever of it still waits. While no worker lives (the state is
        ``RESTARTING``) requests are accepted and wait: they are answered after the restart.

        Args:
            inputs: At least one.
            lane: Where they queue.
            timeout_s: From now; what has not run by then is not run any more.
            tenant: On whose behalf: those who wait in a lane get equal parts of its time.

        Raises:
            EngineNotReadyError: The model is still loading.
            InputRefusedError: One input cannot be embedded by this model.
            RequestTooLargeError: The inputs together have too many tokens.
            BatchingError: The lane is full, the deadline passed, or an input failed in its pass.
        """
        served = self._require_served()
        ticket = ticket_of(inputs, tenant=tenant)
        served.batcher.check_room(lane, tenant=tenant, num_items=len(inputs), ticket=ticket)
        started_s = self._clock()
        features = await served.preparation.prepare(inputs, lane=lane, tenant=tenant, timeout_s=timeout_s)
        prepare_s = self._clock() - started_s
        outcome = await served.batcher.submit(
            [
                WorkItem(payload=one, num_tokens=one.num_tokens, num_image_tokens=one.num_image_tokens)
                for one in features
            ],
            lane=lane,
            tenant=tenant,
            timeout_s=None if timeout_s is None else timeout_s - prepare_s,
            ticket=ticket,
        )
        return Embeddings(
            rows=np.stack([_as_row(result) for result in outcome.results]),
            num_tokens=tuple(one.num_tokens for one in features),
            num_image_tokens=tuple(one.num_image_tokens for one in features),
            num_images=sum(len(one.images) for one in features),
            modalities=tuple(map(modality_of, inputs)),
            num_dropped_tokens=tuple(one.num_dropped_tokens for one in features),
            queue_s=outcome.queue_s,
            compute_s=outcome.device_s,
            worker_wait_s=outcome.runner_wait_s,
            prepare_s=prepare_s,
        )


def ticket_of(inputs: Sequence[EmbeddingInput], *, tenant: str) -> int:
    """What a request is known by when it was refused and comes again: whose it is, and what it asks.

    No client has to say so. Images count by their number: one that is taken for another finds its room, too.
    """
    asked = ((one.text, one.token_ids, one.instruction, len(one.images)) for one in inputs)
    return hash((tenant, *asked))


def modality_of(one: EmbeddingInput) -> str:
    """What an input holds: ``text``, ``image`` or ``text_image``."""
    if not one.images:
        return "text"
    return "text_image" if one.text else "image"


def image_decoder(settings: ImageSettings, spec: ImageSpec) -> ImageDecoder:
    """The decode processes for a model that wants its images so."""
    return ImageDecoder(
        spec,
        ImageLimits(max_pixels=settings.max_image_pixels, decode_timeout_s=settings.decode_timeout_s),
        Orientation(settings.image_orientation),
        Alpha(settings.image_alpha),
        # One for queries, and one for everything else for each two cores: decoding leaves the other to the
        # model, or to the gateway.
        num_processes=settings.decode_workers or 1 + max(1, usable_cores() // 2),
    )


def _as_row(result: object) -> npt.NDArray[np.float32]:
    return cast(npt.NDArray[np.float32], result)
