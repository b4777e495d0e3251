"""What is read at a scrape: the state of the engine, of its workers, of memory and of GPUs.

Law: a collector keeps nothing. It turns the statistics of this moment into samples, so that a gauge cannot
drift from what it describes, and what is not known has no sample.
"""

from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import metric_families as families
from app.budget import BodyBudget
from app.engine import Engine, EngineNotReadyError, EngineStatistics
from app.fetch import FetchFailure
from app.gpus import GpuReading
from app.media import ImageIntake
from app.metric_families import Family, Kind
from batching import CostFigures, Lane, LaneStatistics, Limits, SchedulerStatistics
from model import ModelInfo
from model.images import DecoderStatistics
from model.worker import WorkerStatistics

Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Label values and a value each; ``None``: it is not known."""


class SnapshotCollector(Collector):
    """Asks for samples at every scrape."""

    def __init__(self, read: Callable[[], Iterable[Metric | None]]) -> None:
        """Ask nobody yet.

        Args:
            read: Reads the samples of this moment; ``None`` stands for a metric without any.
        """
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the engine, which may not have begun to load."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The samples of this moment."""
        return (metric for metric in self._read() if metric is not None)


def metric_of(family: Family, samples: Samples) -> Metric | None:
    """The samples of a family as prometheus_client has them; ``None`` where there are none."""
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(family.name, family.text, labels=family.labels)
    for labels, value in samples:
        if value is not None:
            metric.add_metric(labels, value)
    return metric if metric.samples else None


# The engine ------------------------------------------------------------------------------------------------


def read_engine(engine: Engine) -> Iterator[Metric | None]:
    """The model, its lanes, its passes and its workers; while it loads, only that."""
    model = engine.served_name
    yield metric_of(families.MODEL_READY, [((model,), engine.state.is_ready)])
    try:
        info, limits = engine.info, engine.limits
    except EngineNotReadyError:
        return
    statistics = engine.statistics()
    yield from _read_model(model, info, statistics)
    yield from _read_lanes(model, statistics.scheduler.lanes, limits)
    yield from _read_interruptions(model, statistics.scheduler)
    yield from _read_cost(model, statistics.cost)
    yield from _read_workers(model, statistics.workers)


def _read_model(model: str, info: ModelInfo, statistics: EngineStatistics) -> Iterator[Metric | None]:
    facts = (model, info.source, info.fingerprint, info.dtype, info.device, str(info.dimension))
    yield metric_of(families.MODEL_INFO, [(facts, 1)])
    yield metric_of(families.MODEL_LOAD, [((model,), statistics.load_s)])


def _read_lanes(model: str, lanes: dict[Lane, LaneStatistics], limits: Limits) -> Iterator[Metric | None]:
    def by_lane(family: Family, read: Callable[[LaneStatistics], float]) -> Metric | None:
        return metric_of(family, (((model, lane.value), read(state)) for lane, state in lanes.items()))

    yield by_lane(families.QUEUE_ITEMS, lambda lane: lane.num_waiting)
    yield by_lane(families.QUEUE_TOKENS, lambda lane: lane.num_waiting_tokens)
    yield by_lane(families.QUEUE_OLDEST_AGE, lambda lane: lane.oldest_wait_s)
    yield by_lane(families.QUEUE_DEVICE, lambda lane: lane.waiting_s)
    yield by_lane(families.QUEUE_PROMISED, lambda lane: lane.num_promised)
    yield by_lane(families.RUNNING_ITEMS, lambda lane: lane.num_running)
    yield by_lane(families.LANE_DEVICE, lambda lane: lane.device_s)
    yield metric_of(
        families.QUEUE_LIMIT_ITEMS,
        [((model, lane.value), count) for lane, count in limits.max_waiting_entries.items()],
    )
    yield metric_of(
        families.QUEUE_LIMIT_DEVICE,
        [((model, lane.value), limit_s) for lane, limit_s in limits.max_waiting_s.items()],
    )
    yield metric_of(
        families.QUEUE_OUTCOMES,
        (
            ((model, lane.value, outcome), count)
            for lane, state in lanes.items()
            for outcome, count in _outcomes(state).items()
        ),
    )
    yield metric_of(families.QUERY_SLO, [((model,), limits.query_slo_s)])


def _outcomes(state: LaneStatistics) -> dict[str, int]:
    return {
        "done": state.num_done,
        "failed": state.num_failed,
        "cancelled": state.num_cancelled,
        "expired": state.num_expired,
        "refused": state.num_refused,
    }


def _read_interruptions(model: str, scheduler: SchedulerStatistics) -> Iterator[Metric | None]:
    yield metric_of(families.URGENT_PASSES, [((model,), scheduler.num_urgent_passes)])
    yield metric_of(families.INTERRUPTIONS, [((model,), scheduler.num_interruptions)])
    yield metric_of(families.INTERRUPTION_SECONDS, [((model,), scheduler.wasted_s)])


def _read_cost(model: str, cost: CostFigures) -> Iterator[Metric | None]:
    for family, value in (
        (families.COST_FIXED, cost.fixed_s),
        (families.COST_FLOOR, cost.floor_s),
        (families.COST_TOKEN, cost.per_token_s),
        (families.COST_SQUARED_TOKEN, cost.per_square_s),
        (families.COST_IMAGE_TOKEN, cost.per_image_token_s),
    ):
        yield metric_of(family, [((model,), value)])
    residuals = {"50": cost.median_residual, "99": cost.p99_residual}
    yield metric_of(
        families.COST_RESIDUAL, [((model, percentile), value) for percentile, value in residuals.items()]
    )


def _read_workers(model: str, workers: tuple[WorkerStatistics, ...]) -> Iterator[Metric | None]:
    def by_worker(family: Family, read: Callable[[WorkerStatistics], float | None]) -> Metric | None:
        return metric_of(family, (((model, str(slot)), read(worker)) for slot, worker in enumerate(workers)))

    def by_device(family: Family, read: Callable[[WorkerStatistics], float | None]) -> Metric | None:
        return metric_of(
            family,
            (((model, str(slot), worker.device), read(worker)) for slot, worker in enumerate(workers)),
        )

    yield by_worker(families.WORKER_READY, lambda worker: worker.is_ready)
    yield metric_of(
        families.WORKER_INFO,
        [
            ((model, str(slot), worker.device, worker.gpu_uuid or ""), 1)
            for slot, worker in enumerate(workers)
        ],
    )
    yield by_worker(families.WORKER_RESTARTS, lambda worker: worker.num_restarts)
    yield by_worker(families.WORKER_PASSES, lambda worker: worker.num_passes)
    yield by_worker(families.WORKER_OUT_OF_MEMORY, lambda worker: worker.num_out_of_memory)
    yield by_device(families.DEVICE_BUSY, lambda worker: worker.device_s)
    # 0 is what the kernel tells of a process that was killed and not waited for yet (proc(5), statm).
    yield by_worker(families.WORKER_MEMORY, lambda worker: worker.rss_bytes or None)
    yield by_device(families.TORCH_ALLOCATED, lambda worker: worker.memory and worker.memory.allocated_bytes)
    yield by_device(families.TORCH_RESERVED, lambda worker: worker.memory and worker.memory.reserved_bytes)
    yield by_device(families.TORCH_PEAK, lambda worker: worker.memory and worker.memory.peak_allocated_bytes)


# Memory ----------------------------------------------------------------------------------------------------


def read_bodies(budget: BodyBudget) -> Iterator[Metric | None]:
    """How much memory large bodies hold, and who waits for some."""
    yield metric_of(families.HELD_BODY, [((), budget.held_bytes)])
    yield metric_of(families.HELD_BODY_LIMIT, [((), budget.max_bytes)])
    yield metric_of(families.BODY_WAITING, [((), budget.num_waiting)])


def read_images(intake: ImageIntake) -> Iterator[Metric | None]:
    """What became of images, and how much memory they hold."""
    statistics = intake.statistics()
    fetches = statistics.fetches
    held_query_bytes = statistics.held_query_bytes
    yield metric_of(
        families.HELD_IMAGE, _by_urgency(held_query_bytes, statistics.held_bytes - held_query_bytes)
    )
    yield metric_of(
        families.HELD_IMAGE_LIMIT,
        _by_urgency(statistics.max_held_query_bytes, statistics.max_held_other_bytes),
    )
    yield metric_of(
        families.IMAGE_WAITING,
        _by_urgency(statistics.num_waiting_queries, statistics.num_waiting_others),
    )
    yield metric_of(families.IMAGE_FETCHES_RUNNING, [((), fetches.num_running)])
    failed = [((failure.value,), fetches.num_failed.get(failure, 0)) for failure in FetchFailure]
    yield metric_of(families.IMAGE_FETCHES, [(("fetched",), fetches.num_fetched), *failed])
    yield metric_of(families.IMAGE_FETCHED, [((), fetches.num_bytes)])
    if (decoder := statistics.decoder) is not None:
        yield from _read_decoder(decoder)


def _read_decoder(decoder: DecoderStatistics) -> Iterator[Metric | None]:
    counts = {
        "decoded": decoder.num_decoded,
        "refused": decoder.num_refused,
        "timeout": decoder.num_timeouts,
        "crashed": decoder.num_crashes,
        "abandoned": decoder.num_abandoned,
    }
    yield metric_of(families.IMAGE_DECODES, [((outcome,), count) for outcome, count in counts.items()])
    yield metric_of(
        families.IMAGE_QUEUE, _by_urgency(decoder.num_waiting_queries, decoder.num_waiting_documents)
    )
    yield metric_of(families.IMAGE_DECODER_RESTARTS, [((), decoder.num_restarts)])


def _by_urgency(of_queries: int, of_others: int) -> Samples:
    return [((Lane.QUERY.value,), of_queries), ((Lane.DOCUMENT.value,), of_others)]


# The machine -----------------------------------------------------------------------------------------------


def read_gpu_metrics(readings: tuple[GpuReading, ...]) -> Iterator[Metric | None]:
    """What the driver tells of each GPU."""

    def by_gpu(family: Family, read: Callable[[GpuReading], float | None]) -> Metric | None:
        return metric_of(family, (((str(gpu.index), gpu.uuid), read(gpu)) for gpu in readings))

    yield metric_of(families.GPU_INFO, [((str(gpu.index), gpu.uuid, gpu.name), 1) for gpu in readings])
    yield by_gpu(families.GPU_UTILIZATION, lambda gpu: gpu.utilization_ratio)
    yield by_gpu(families.GPU_MEMORY_USED, lambda gpu: gpu.memory_used_bytes)
    yield by_gpu(families.GPU_MEMORY_TOTAL, lambda gpu: gpu.memory_total_bytes)
    yield by_gpu(families.GPU_POWER, lambda gpu: gpu.power_watts)
    yield by_gpu(families.GPU_TEMPERATURE, lambda gpu: gpu.temperature_celsius)


def build_info(laneway_version: str) -> Metric | None:
    """The versions of the program and of what computes vectors in it."""
    versions = (laneway_version, _installed("torch"), _installed("transformers"))
    return metric_of(families.BUILD_INFO, [(versions, 1)])


def _installed(distribution: str) -> str:
    # From the metadata: the gateway does not import them.
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
