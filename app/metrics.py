"""Every collector there is, in a registry of its own.

Laws: base units and ``_total`` names; labels come from closed sets (settings, route templates, enums), never
from what a client wrote; gauges are read from the engine's statistics at scrape time, so they cannot drift
from what they describe.
"""

import collections
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from app.engine import Embeddings, Engine, EngineNotReadyError, EngineStatistics
from app.fetch import FetchFailure
from app.media import ImageIntake
from batching import Lane, PassReport
from model.images import DecoderStatistics

LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
SIZE_BUCKETS = tuple(float(2**power) for power in range(12))
"""1 to 2048: inputs of a request, entries of a pass."""
TOKEN_BUCKETS = tuple(float(2**power) for power in range(3, 16))
"""8 to 32768: tokens of an input or of a pass."""

RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0)

disable_created_metrics()  # `_created` series double the text format and tell nothing that rate() needs


C = TypeVar("C", bound=MetricWrapperBase)


class Metrics:
    """Owns the registry and everything that is counted where it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._engine: Engine | None = None
        # As bounded as the labels: closed sets all of them.
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase] = {}
        self.http_requests = Counter(
            "laneway_http_requests",
            "Requests answered. Route is the path template, 'unmatched' where none fits.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.http_request_duration = Histogram(
            "laneway_http_request_duration_seconds",
            "Time from a request's head to the last byte of its answer.",
            ["route", "status_class"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.requests_in_flight = Gauge(
            "laneway_requests_in_flight",
            "Embedding requests between their decoded body and their answer.",
            registry=self.registry,
        )
        self.request_failures = Counter(
            "laneway_request_failures",
            "Requests that got an error in place of their answer, or whose client left, by what went wrong.",
            ["reason"],
            registry=self.registry,
        )
        self.request_retries = Counter(
            "laneway_request_retries",
            "Requests that an OpenAI SDK sent again, by its own count.",
            registry=self.registry,
        )
        self.items = Counter(
            "laneway_items", "Inputs embedded.", ["model", "modality", "lane"], registry=self.registry
        )
        self.tokens = Counter(
            "laneway_tokens",
            "Tokens computed, special tokens and prompts included.",
            ["model", "modality", "lane"],
            registry=self.registry,
        )
        self.request_items = Histogram(
            "laneway_request_items",
            "Inputs of a request.",
            ["model"],
            buckets=SIZE_BUCKETS,
            registry=self.registry,
        )
        self.stage_duration = Histogram(
            "laneway_stage_duration_seconds",
            "Where a request's time went: loading and decoding its images, the longest wait of its inputs, "
            "and the device time of its passes.",
            ["model", "stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.truncated_inputs = Counter(
            "laneway_truncated_inputs",
            "Inputs that were cut to what the model reads.",
            ["model"],
            registry=self.registry,
        )
        self.token_arrays = Counter(
            "laneway_token_array_requests",
            "Requests with token arrays, by how they were read or why they were not.",
            ["outcome"],
            registry=self.registry,
        )
        self.ignored_params = Counter(
            "laneway_ignored_params",
            "Top-level request parameters that are unknown here and were ignored.",
            registry=self.registry,
        )
        self.pass_items = Histogram(
            "laneway_pass_items", "Inputs in a pass.", ["model"], buckets=SIZE_BUCKETS, registry=self.registry
        )
        self.pass_tokens = Histogram(
            "laneway_pass_tokens",
            "Tokens in a pass.",
            ["model"],
            buckets=TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.pass_device_seconds = Histogram(
            "laneway_pass_device_seconds",
            "Device time of a pass.",
            ["model"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.pass_prediction_ratio = Histogram(
            "laneway_pass_prediction_ratio",
            "Device time of a pass over what was predicted for it.",
            ["model"],
            buckets=RATIO_BUCKETS,
            registry=self.registry,
        )
        self.pass_failures = Counter(
            "laneway_pass_failures", "Passes that came back without rows.", ["model"], registry=self.registry
        )

    def observe_http(
        self, route: str, method: str, status: int, duration_s: float, *, failure: str | None
    ) -> None:
        """Count one request, and its failure if it was one; ``app.observe`` calls this for every one."""
        self._child(self.http_requests, route, method, str(status)).inc()
        self._child(self.http_request_duration, route, f"{status // 100}xx").observe(duration_s)
        if failure is not None:
            self._child(self.request_failures, failure).inc()

    def observe_embeddings(self, embeddings: Embeddings, *, lane: Lane) -> None:
        """Count what one request was given."""
        model = self._model
        num_truncated = sum(dropped > 0 for dropped in embeddings.num_dropped_tokens)
        for modality, count in collections.Counter(embeddings.modalities).items():
            self._child(self.items, model, modality, lane).inc(count)
        num_image_tokens = sum(embeddings.num_image_tokens)
        num_text_tokens = sum(embeddings.num_tokens) - num_image_tokens
        self._child(self.tokens, model, "text", lane).inc(num_text_tokens)
        if num_image_tokens:
            self._child(self.tokens, model, "image", lane).inc(num_image_tokens)
        self._child(self.request_items, model).observe(len(embeddings.num_tokens))
        self._child(self.truncated_inputs, model).inc(num_truncated)
        self._child(self.stage_duration, model, "queue").observe(embeddings.queue_s)
        self._child(self.stage_duration, model, "inference").observe(embeddings.compute_s)

    def observe_pass(self, report: PassReport) -> None:
        """Count one finished pass; the engine's ``on_pass``."""
        model = self._model
        if report.error is not None:
            self._child(self.pass_failures, model).inc()
            return
        self._child(self.pass_items, model).observe(sum(report.num_entries.values()))
        self._child(self.pass_tokens, model).observe(sum(report.num_tokens.values()))
        self._child(self.pass_device_seconds, model).observe(report.device_s)
        if report.predicted_s > 0:
            self._child(self.pass_prediction_ratio, model).observe(report.device_s / report.predicted_s)

    def _child(self, collector: C, *labels: str) -> C:
        """``collector.labels(*labels)``, looked up without its lock: there are a dozen for each request."""
        key = (collector, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = collector.labels(*labels)
        return cast("C", child)

    def observe_images(self, stage: str, duration_s: float) -> None:
        """Count how long a request's images took to load or to decode."""
        self._child(self.stage_duration, self._model, stage).observe(duration_s)

    def watch(self, engine: Engine) -> None:
        """Label everything with this engine's model, and read its state and queues at every scrape."""
        self._engine = engine
        self.registry.register(EngineCollector(engine))

    def watch_images(self, intake: ImageIntake) -> None:
        """Read at every scrape what became of images, and how much memory they hold."""
        self.registry.register(ImageCollector(intake))

    @property
    def _model(self) -> str:
        # Asked each time: an engine learns its model's name only when it has found it.
        return self._engine.served_name if self._engine is not None else ""

    def render(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the exposition format that the scraper accepts.

        Returns:
            The text, and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class EngineCollector(Collector):
    """Turns an engine's statistics into samples, when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the engine, which may not have begun to load."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The samples of this moment."""
        model = self._engine.served_name
        yield _gauge(
            "laneway_model_ready",
            "1 while the model answers requests.",
            {"model": model},
            self._engine.state.is_ready,
        )
        try:
            info = self._engine.info
        except EngineNotReadyError:
            return
        facts = {
            "model": model,
            "source": info.source,
            "fingerprint": info.fingerprint,
            "dtype": info.dtype,
            "device": info.device,
            "dimension": str(info.dimension),
        }
        yield _gauge("laneway_model_info", "What is served.", facts, 1)
        statistics = self._engine.statistics()
        yield from _queue_metrics(statistics, model=model)
        yield from _worker_metrics(statistics, model=model)


class ImageCollector(Collector):
    """Turns an intake's statistics into samples, when they are asked for."""

    def __init__(self, intake: ImageIntake) -> None:
        self._intake = intake

    def describe(self) -> Iterable[Metric]:
        """Nothing: the decoder exists only once a model is loaded."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The samples of this moment."""
        statistics = self._intake.statistics()
        yield _gauge(
            "laneway_held_image_bytes",
            "Decoded base64 and pixels that requests in flight hold, or were promised.",
            {},
            statistics.held_bytes,
        )
        waiting = GaugeMetricFamily(
            "laneway_image_waiting_requests",
            "Requests that wait for a turn to fetch their images, or for room for them.",
            labels=["lane"],
        )
        waiting.add_metric(["query"], statistics.num_waiting_queries)
        waiting.add_metric(["document"], statistics.num_waiting_others)
        yield waiting
        yield _gauge(
            "laneway_image_fetches_running",
            "Images that are on their way, or wait in a fetch's place to be decoded.",
            {},
            statistics.fetches.num_running,
        )
        fetches = CounterMetricFamily(
            "laneway_image_fetches", "Image URLs, by what became of them.", labels=["outcome"]
        )
        fetches.add_metric(["fetched"], statistics.fetches.num_fetched)
        for failure in FetchFailure:
            fetches.add_metric([str(failure)], statistics.fetches.num_failed.get(failure, 0))
        yield fetches
        fetched = CounterMetricFamily("laneway_image_fetched_bytes", "Bytes of the images that were fetched.")
        fetched.add_metric([], statistics.fetches.num_bytes)
        yield fetched
        if (decoder := statistics.decoder) is not None:
            yield from _decoder_metrics(decoder)


def _decoder_metrics(decoder: DecoderStatistics) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "laneway_image_decodes", "Image files, by what became of them.", labels=["outcome"]
    )
    counts = {
        "decoded": decoder.num_decoded,
        "refused": decoder.num_refused,
        "timeout": decoder.num_timeouts,
        "crashed": decoder.num_crashes,
        "abandoned": decoder.num_abandoned,
    }
    for outcome, count in counts.items():
        outcomes.add_metric([outcome], count)
    waiting = GaugeMetricFamily(
        "laneway_image_queue_items", "Image files that wait to be decoded.", labels=["lane"]
    )
    waiting.add_metric(["query"], decoder.num_waiting_queries)
    waiting.add_metric(["document"], decoder.num_waiting_documents)
    restarts = CounterMetricFamily(
        "laneway_image_decoder_restarts", "Decode processes that took the place of another."
    )
    restarts.add_metric([], decoder.num_restarts)
    yield from (outcomes, waiting, restarts)


def _gauge(name: str, text: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _queue_metrics(statistics: EngineStatistics, *, model: str) -> Iterator[Metric]:
    by_lane = ["model", "lane"]
    items = GaugeMetricFamily("laneway_queue_items", "Inputs waiting.", labels=by_lane)
    tokens = GaugeMetricFamily("laneway_queue_tokens", "Tokens of the inputs waiting.", labels=by_lane)
    age = GaugeMetricFamily(
        "laneway_queue_oldest_age_seconds", "How long the oldest waiting input has waited.", labels=by_lane
    )
    backlog = GaugeMetricFamily(
        "laneway_queue_device_seconds", "How long all devices together need for what waits.", labels=by_lane
    )
    device = CounterMetricFamily(
        "laneway_lane_device_seconds",
        "Device time spent on the lane, by its part of the work of each pass.",
        labels=by_lane,
    )
    outcomes = CounterMetricFamily(
        "laneway_queue_outcomes",
        "What became of inputs that came to the queue.",
        labels=[*by_lane, "outcome"],
    )
    for lane, state in statistics.scheduler.lanes.items():
        key = [model, str(lane)]
        items.add_metric(key, state.num_waiting)
        tokens.add_metric(key, state.num_waiting_tokens)
        age.add_metric(key, state.oldest_wait_s)
        backlog.add_metric(key, state.waiting_s)
        device.add_metric(key, state.device_s)
        counts = {
            "done": state.num_done,
            "failed": state.num_failed,
            "cancelled": state.num_cancelled,
            "expired": state.num_expired,
            "refused": state.num_refused,
        }
        for outcome, count in counts.items():
            outcomes.add_metric([*key, outcome], count)
    yield from (items, tokens, age, backlog, device, outcomes)
    scheduler = statistics.scheduler
    for name, text, value in (
        (
            "laneway_urgent_passes",
            "Passes of queries that overtook one that was waiting.",
            scheduler.num_urgent_passes,
        ),
        ("laneway_interruptions", "Those that might run between two layers.", scheduler.num_interruptions),
        ("laneway_interruption_seconds", "Device time that this cost.", scheduler.wasted_s),
    ):
        counter = CounterMetricFamily(name, text, labels=["model"])
        counter.add_metric([model], value)
        yield counter


def _worker_metrics(statistics: EngineStatistics, *, model: str) -> Iterator[Metric]:
    by_worker = ["model", "worker"]
    ready = GaugeMetricFamily("laneway_worker_ready", "1 while the worker takes passes.", labels=by_worker)
    restarts = CounterMetricFamily(
        "laneway_worker_restarts", "Times the worker died and was started again.", labels=by_worker
    )
    memory = GaugeMetricFamily(
        "laneway_worker_resident_memory_bytes",
        "Resident memory of the worker, pages it shares included.",
        labels=by_worker,
    )
    for slot, worker in enumerate(statistics.workers):
        key = [model, str(slot)]
        ready.add_metric(key, worker.is_ready)
        restarts.add_metric(key, worker.num_restarts)
        if worker.rss_bytes is not None:
            memory.add_metric(key, worker.rss_bytes)
    yield from (ready, restarts, memory)
