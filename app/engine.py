"""One served model: prepare, queue, run. Joins the batching and the model room, and knows no HTTP.

The engine owns the worker processes, the batcher and the tokeniser pools, from the first download to the
last drained pass. Inputs go down once (prepare, admit, run), rows come up once, in input order.
"""

import asyncio
import logging
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from app.calibration import measure_passes, shape_of
from app.devices import Placement, place_workers, usable_cores
from app.logs import logs_as_json
from app.settings import BatchingSettings, ImageSettings, Settings
from app.threads import in_daemon_thread
from batching import (
    Batcher,
    CostFigures,
    CostModel,
    Lane,
    LaneLoad,
    Limits,
    PassReport,
    RunnerLostError,
    RunResult,
    SchedulerStatistics,
    Shape,
    ShuttingDownError,
    WorkItem,
)
from model import (
    Checkpoint,
    CheckpointError,
    DecodedImage,
    EmbeddingInput,
    Features,
    ImageSpec,
    InputError,
    ModelInfo,
    NonFiniteRowError,
    Preparer,
    WorkerDiedError,
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

# What preparing an input costs beside its text, in characters: 6 us, where 1,000 characters take 270 us
# (MiniLM's tokeniser, one core).
_INPUT_CHARS = 20
# And what an image's thousand tokens take.
_IMAGE_CHARS = 200
# Less than this is prepared on the event loop, which stands still for a quarter of a millisecond at most.
_INLINE_CHARS = 1_000
# Longer requests never use the query lane's tokeniser thread, whatever lane they are in.
_QUERY_POOL_CHARS = 20_000
# Most that one call tokenises: it cannot be interrupted, and other requests of its pool wait for it. 200,000
# characters take 0.14 s. One longer input is a call of its own, bounded by the setting max_input_chars.
_CHUNK_INPUTS = 64
_CHUNK_CHARS = 200_000

_MIN_PASS_TIMEOUT_S = 10.0
_TIMEOUT_FACTOR = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class PassDefaults:
    """How long and how large passes are where the settings do not say."""

    max_pass_ms: float
    max_document_pass_ms: float
    fill_ms: float
    max_pass_tokens: int
    quiet_after_s: float
    """How long after a query passes of documents stay short."""
    interruption_share: float


# On a CPU a pass costs little beside its work, so to fill one of queries saves next to nothing, and only
# makes them wait. And passes are left between two layers, so long ones of documents cost queries little.
CPU_PASSES = PassDefaults(
    max_pass_ms=50,
    max_document_pass_ms=200,
    fill_ms=0,
    max_pass_tokens=4_096,
    quiet_after_s=0.0,
    interruption_share=0.08,
)
# Not measured on a card yet.
CUDA_PASSES = PassDefaults(
    max_pass_ms=30,
    max_document_pass_ms=60,
    fill_ms=15,
    max_pass_tokens=16_384,
    quiet_after_s=1.0,
    interruption_share=0.05,
)


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


class InputRefusedError(Exception):
    """One input cannot be embedded; ``__cause__`` is the model room's ``InputError``."""

    def __init__(self, index: int, cause: InputError) -> None:
        super().__init__(str(cause))
        self.index = index
        self.__cause__ = cause


class RequestTooLargeError(Exception):
    """The inputs of a request have more tokens together than one request may have."""

    def __init__(self, *, num_tokens: int, max_tokens: int, is_at_least: bool = False) -> None:
        """Say how many tokens there are.

        Args:
            num_tokens: Tokens of the inputs, as far as they were counted.
            max_tokens: The limit.
            is_at_least: Not all inputs were counted; there are more tokens.
        """
        requested = f"at least {num_tokens}" if is_at_least else str(num_tokens)
        super().__init__(f"Requested {requested} tokens, max {max_tokens} tokens per request.")
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


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


@dataclass(slots=True)
class _Served:
    """What exists once the model is loaded."""

    info: ModelInfo
    preparer: Preparer
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


@dataclass(slots=True)
class _TokeniserPools:
    """Queries have a thread of their own, so that no document is tokenised before them."""

    query: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokenise-query"))
    document: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokenise-document"))

    def choose(self, lane: Lane, num_chars: int) -> ThreadPoolExecutor:
        """The pool for a request of the lane, of so many characters in all."""
        return self.query if lane is Lane.QUERY and num_chars <= _QUERY_POOL_CHARS else self.document

    def shutdown(self) -> None:
        self.query.shutdown(wait=False, cancel_futures=True)
        self.document.shutdown(wait=False, cancel_futures=True)


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
        self._is_stopped = False
        self._num_admitted = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._names = names_of(settings.model.model)
        self._workers: list[Worker] = []
        self._served: _Served | None = None
        self._load_s = 0.0
        self._totals = _Totals()
        self._pools = _TokeniserPools()

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

        def open_process(options: LoadOptions, _slot: int) -> Worker:
            return ProcessWorker(
                options,
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
        """Bounds of passes and lanes, as they came out of the settings, the device and its speed.

        Raises:
            EngineNotReadyError: The model is not loaded yet.
        """
        return self.pass_times.limits

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
        infos = await self._start_workers()
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
        samples = await measure_passes(self._workers[0], info, limits)
        cost.fit(samples)
        logger.info("pass times: %r", cost)
        batcher = Batcher(
            [WorkerRunner(worker, cost) for worker in self._workers],
            limits=limits,
            cost=cost,
            name=self.served_name,
            clock=self._clock,
            on_pass=self._observe_pass,
        )
        preparer = await asyncio.to_thread(Preparer, info)
        decoder = None
        if info.images is not None:
            self._enter("starting the image decoder")
            decoder = self._open_decoder(info.images.spec)
            await decoder.start()
        batcher.start()
        times = PassTimes(samples=tuple(samples), cost=cost, limits=limits)
        return _Served(info=info, preparer=preparer, batcher=batcher, times=times, decoder=decoder)

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
            if self._served.decoder is not None:
                await self._served.decoder.close()
        self._is_stopped = True
        await self._stop_workers()
        self._pools.shutdown()

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
        started_s = self._clock()
        features = await self._prepare(served.preparer, inputs, lane)
        prepare_s = self._clock() - started_s
        outcome = await served.batcher.submit(
            [
                WorkItem(payload=one, num_tokens=one.num_tokens, num_image_tokens=one.num_image_tokens)
                for one in features
            ],
            lane=lane,
            tenant=tenant,
            timeout_s=None if timeout_s is None else timeout_s - prepare_s,
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

    async def _prepare(
        self, preparer: Preparer, inputs: Sequence[EmbeddingInput], lane: Lane
    ) -> list[Features]:
        """Make the features of a request, chunk after chunk; the first chunk that is too much ends it."""
        sizes = [preparation_chars(one) for one in inputs]
        num_chars = sum(sizes)
        pool = None if num_chars <= _INLINE_CHARS else self._pools.choose(lane, num_chars)
        max_tokens = self._settings.limits.max_request_tokens
        features: list[Features] = []
        num_tokens = 0
        for chunk in cut_chunks(sizes):
            prepared = await self._prepare_chunk(preparer, inputs[chunk.start : chunk.stop], pool)
            features += _accepted(prepared, first_index=chunk.start)
            num_tokens += sum(one.num_tokens + one.num_dropped_tokens for one in features[chunk.start :])
            if num_tokens > max_tokens:
                raise RequestTooLargeError(
                    num_tokens=num_tokens, max_tokens=max_tokens, is_at_least=chunk.stop < len(inputs)
                )
        return features

    async def _prepare_chunk(
        self, preparer: Preparer, inputs: Sequence[EmbeddingInput], pool: ThreadPoolExecutor | None
    ) -> list[Features | InputError]:
        if pool is None:
            return preparer.prepare(inputs)
        if self._is_stopped:
            raise ShuttingDownError
        return await asyncio.get_running_loop().run_in_executor(pool, preparer.prepare, inputs)


def preparation_chars(one: EmbeddingInput) -> int:
    """What it takes to prepare an input, in characters; checking an id takes less than reading one."""
    num_chars = len(one.text or "") + len(one.instruction or "") + len(one.token_ids or ())
    return _INPUT_CHARS + num_chars + _IMAGE_CHARS * len(one.images)


def modality_of(one: EmbeddingInput) -> str:
    """What an input holds: ``text``, ``image`` or ``text_image``."""
    if not one.images:
        return "text"
    return "text_image" if one.text else "image"


def cut_chunks(sizes: Sequence[int]) -> Iterator[range]:
    """Cut a request into what is tokenised at once; an input that is more than a chunk is one by itself.

    Args:
        sizes: Characters of each input.

    Yields:
        The inputs' indices, all of them, in order.
    """
    start = num_chars = 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == _CHUNK_INPUTS or num_chars + size > _CHUNK_CHARS):
            yield range(start, index)
            start, num_chars = index, 0
        num_chars += size
    if start < len(sizes):
        yield range(start, len(sizes))


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


class WorkerRunner:
    """A worker as the batcher knows it: payloads are features, results are rows or errors."""

    def __init__(self, worker: Worker, cost: CostModel) -> None:
        self._worker = worker
        self._cost = cost

    async def wait_ready(self) -> None:
        """Return when a pass may be run."""
        await self._worker.wait_ready()

    @property
    def depth(self) -> int:
        """A pass may wait at the worker for the one before it: the device never waits for the gateway."""
        return 2

    @property
    def can_interrupt(self) -> bool:
        """Whether queries may run between two layers of a pass of documents."""
        return self._worker.can_interrupt

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        """Run one pass; a row that is not finite is that entry's error."""
        features = [_as_features(payload) for payload in payloads]
        predicted_s = self._cost.predict_s(shape_of(features))
        try:
            result = await self._worker.run(
                features,
                timeout_s=pass_timeout_s(predicted_s),
                is_urgent=is_urgent,
                may_interrupt=may_interrupt,
            )
        except WorkerDiedError as error:
            raise RunnerLostError(str(error)) from error
        bad_rows = frozenset(result.nonfinite_rows)
        results = [NonFiniteRowError() if index in bad_rows else row for index, row in enumerate(result.rows)]
        return RunResult(
            results=results, device_s=result.device_s, num_padding_tokens=result.num_padding_tokens
        )


def pass_timeout_s(predicted_s: float) -> float:
    """When a worker that has not answered a pass is taken to hang.

    Far above any noise: a machine that is busy otherwise makes a pass ten times as long. A query behind a
    stopped worker waits this long, so it must not be minutes.
    """
    return max(_MIN_PASS_TIMEOUT_S, _TIMEOUT_FACTOR * predicted_s)


def batching_limits(batching: BatchingSettings, *, is_cuda: bool) -> Limits:
    """The scheduler's limits, from the settings and the kind of device."""
    defaults = CUDA_PASSES if is_cuda else CPU_PASSES
    max_pass_ms = batching.max_pass_ms or defaults.max_pass_ms
    max_document_pass_ms = batching.max_document_pass_ms or max(defaults.max_document_pass_ms, max_pass_ms)
    fill_ms = batching.fill_ms
    if fill_ms is None:
        fill_ms = max_pass_ms * defaults.fill_ms / defaults.max_pass_ms
    share = batching.interruption_share
    return Limits(
        max_pass_s=min(max_pass_ms, max_document_pass_ms) / 1000,
        max_document_pass_s=max_document_pass_ms / 1000,
        fill_s=min(fill_ms, max_pass_ms, max_document_pass_ms) / 1000,
        max_pass_tokens=batching.max_pass_tokens or defaults.max_pass_tokens,
        max_pass_entries=batching.max_batch_size if batching.enable_batching else 1,
        max_wait_s=batching.max_wait_ms / 1000,
        quiet_after_s=defaults.quiet_after_s,
        query_slo_s=batching.query_slo_ms / 1000,
        shares={Lane.DOCUMENT: batching.document_share, Lane.BATCH: batching.batch_share},
        interruption_share=defaults.interruption_share if share is None else share,
        max_waiting_entries=_queue_entries(batching),
        max_waiting_s={
            Lane.QUERY: batching.max_query_queue_s,
            Lane.DOCUMENT: batching.max_document_queue_s,
            Lane.BATCH: batching.max_batch_queue_s,
        },
    )


def _queue_entries(batching: BatchingSettings) -> dict[Lane, int]:
    return {
        Lane.QUERY: batching.max_query_queue,
        Lane.DOCUMENT: batching.max_document_queue,
        Lane.BATCH: batching.max_batch_queue,
    }


def _accepted(prepared: Sequence[Features | InputError], *, first_index: int) -> list[Features]:
    features: list[Features] = []
    for index, one in enumerate(prepared, start=first_index):
        if isinstance(one, InputError):
            raise InputRefusedError(index, one)
        features.append(one)
    return features


def _as_features(payload: object) -> Features:
    assert isinstance(payload, Features)
    return payload


def _as_row(result: object) -> npt.NDArray[np.float32]:
    return cast(npt.NDArray[np.float32], result)
