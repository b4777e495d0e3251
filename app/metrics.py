"""What is counted, in a registry of its own.

Laws: what metrics there are, and how they are labelled, stands in ``metric_families``. What happens is
counted here; how things are is read at a scrape, in ``metric_collectors``. Whoever watches live is told the
same.
"""

import asyncio
import collections
from collections.abc import Iterable
from functools import partial
from typing import TypeVar, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from app import metric_families as families
from app.budget import BodyBudget
from app.engine import Embeddings, Engine
from app.gpus import Gpus
from app.live import LiveView
from app.media import ImageIntake
from app.metric_collectors import (
    SnapshotCollector,
    build_info,
    read_bodies,
    read_engine,
    read_gpu_metrics,
    read_images,
)
from app.metric_families import Family
from batching import Lane, PassReport

disable_created_metrics()  # `_created` series double the text format and tell nothing that rate() needs

COUNTED_FROM_START = (200, 408, 429, 500, 503)
"""Statuses that a posted request may be answered with, and that alerts compare."""

_OPENMETRICS = "application/openmetrics-text"
_OPENMETRICS_END = b"# EOF\n"

C = TypeVar("C", bound=MetricWrapperBase)


class Metrics:
    """Owns the registry and everything that is counted where it happens."""

    def __init__(
        self,
        live: LiveView | None = None,
        *,
        gpus: Gpus | None = None,
        version: str = "unknown",
        query_slo_s: float | None = None,
    ) -> None:
        """Begin to count.

        Args:
            live: Is told everything, too.
            gpus: Where GPUs are read. ``None``: nowhere.
            version: Of the program.
            query_slo_s: How soon queries are to be answered. Latencies have it for a bound, so that the part
                that was in time is counted and not estimated.
        """
        self._live = live
        self._gpus = gpus
        self.registry = CollectorRegistry(auto_describe=True)
        self._engine: Engine | None = None
        # As bounded as the labels: closed sets all of them.
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase] = {}
        self.requests_in_flight = self._gauge(families.REQUESTS_IN_FLIGHT)
        self.request_retries = self._counter(families.REQUEST_RETRIES)
        self.token_arrays = self._counter(families.TOKEN_ARRAYS)
        self.ignored_params = self._counter(families.IGNORED_PARAMS)
        self._http_requests = self._counter(families.HTTP_REQUESTS)
        self._http_request_duration = self._histogram(families.HTTP_REQUEST_DURATION)
        self._request_duration = self._histogram(families.REQUEST_DURATION, extra_bound=query_slo_s)
        self._request_failures = self._counter(families.REQUEST_FAILURES)
        for reason in families.REQUEST_FAILURES.values:
            self._child(self._request_failures, reason)
        self._deadline_misses = self._counter(families.DEADLINE_MISSES)
        self._stage_duration = self._histogram(families.STAGE_DURATION)
        self._items = self._counter(families.ITEMS)
        self._tokens = self._counter(families.TOKENS)
        self._request_items = self._histogram(families.REQUEST_ITEMS)
        self._truncated_inputs = self._counter(families.TRUNCATED_INPUTS)
        self._pass_items = self._histogram(families.PASS_ITEMS)
        self._pass_tokens = self._histogram(families.PASS_TOKENS)
        self._pass_device = self._histogram(families.PASS_DEVICE)
        self._pass_prediction_ratio = self._histogram(families.PASS_PREDICTION_RATIO)
        self._pass_padding_ratio = self._histogram(families.PASS_PADDING_RATIO)
        self._pass_failures = self._counter(families.PASS_FAILURES)
        self.event_loop_lag = self._histogram(families.EVENT_LOOP_LAG)
        build = build_info(version)
        self.registry.register(SnapshotCollector(lambda: [build]))
        if gpus is not None:
            self.registry.register(SnapshotCollector(lambda: read_gpu_metrics(gpus.latest)))
        for add_own in (ProcessCollector, GCCollector, PlatformCollector):
            add_own(registry=self.registry)

    # What there is to read

    def watch(self, engine: Engine) -> None:
        """Label everything with this engine's model, and read its state and queues at every scrape."""
        self._engine = engine
        self._child(self._pass_failures, self._model)
        self._child(self._pass_items, self._model)
        for lane in Lane:
            self._child(self._deadline_misses, self._model, lane)
        self.registry.register(SnapshotCollector(partial(read_engine, engine)))

    def watch_bodies(self, budget: BodyBudget) -> None:
        """Read at every scrape how much memory large bodies hold."""
        self.registry.register(SnapshotCollector(partial(read_bodies, budget)))

    def watch_images(self, intake: ImageIntake) -> None:
        """Read at every scrape what became of images, and how much memory they hold."""
        self.registry.register(SnapshotCollector(partial(read_images, intake)))

    def expect_posts(self, routes: Iterable[str]) -> None:
        """Count requests that are posted to these routes from 0 on.

        A series that begins with its first events does not tell that there were none before, so ``rate()``
        and ``increase()`` would miss the first burst of failures, however large.

        Args:
            routes: Path templates.
        """
        for route in routes:
            for status in COUNTED_FROM_START:
                self._child(self._http_requests, route, "POST", str(status))

    # What happens

    def observe_http(
        self,
        route: str,
        method: str,
        status: int,
        duration_s: float,
        *,
        failure: str | None,
        lane: Lane | None,
    ) -> None:
        """Count one request, and its failure if it was one; ``app.observe`` calls this for every one."""
        status_class = f"{status // 100}xx"
        self._child(self._http_requests, route, method, str(status)).inc()
        self._child(self._http_request_duration, route, status_class).observe(duration_s)
        if lane is not None:
            self._child(self._request_duration, self._model, lane, status_class).observe(duration_s)
            # Whoever has a lane has arrived, so it is not the 408 of one who was too slow to.
            if status == 408:
                self._child(self._deadline_misses, self._model, lane).inc()
        if failure is not None:
            self._child(self._request_failures, failure).inc()
        if self._live is not None:
            self._live.observe_http(route, method, status, duration_s, failure=failure, lane=lane)

    def observe_stage(self, stage: str, duration_s: float, *, lane: Lane) -> None:
        """Count how long a request of the lane spent on a part of its way."""
        self._child(self._stage_duration, self._model, lane, stage).observe(duration_s)

    def observe_embeddings(self, embeddings: Embeddings, *, lane: Lane) -> None:
        """Count what one request was given."""
        model = self._model
        num_truncated = sum(dropped > 0 for dropped in embeddings.num_dropped_tokens)
        for modality, count in collections.Counter(embeddings.modalities).items():
            self._child(self._items, model, modality, lane).inc(count)
        num_image_tokens = sum(embeddings.num_image_tokens)
        num_text_tokens = sum(embeddings.num_tokens) - num_image_tokens
        self._child(self._tokens, model, "text", lane).inc(num_text_tokens)
        if num_image_tokens:
            self._child(self._tokens, model, "image", lane).inc(num_image_tokens)
        self._child(self._request_items, model).observe(len(embeddings.num_tokens))
        self._child(self._truncated_inputs, model).inc(num_truncated)
        self.observe_stage("prepare", embeddings.prepare_s, lane=lane)
        self.observe_stage("queue", embeddings.queue_s, lane=lane)
        self.observe_stage("worker", max(0.0, embeddings.worker_wait_s), lane=lane)
        self.observe_stage("inference", embeddings.compute_s, lane=lane)
        if self._live is not None:
            self._live.observe_embeddings(embeddings, lane=lane)

    def observe_pass(self, report: PassReport) -> None:
        """Count one finished pass; the engine's ``on_pass``."""
        model = self._model
        if report.error is not None:
            self._child(self._pass_failures, model).inc()
        else:
            num_tokens = sum(report.num_tokens.values())
            num_padding = report.num_padding_tokens
            self._child(self._pass_items, model).observe(sum(report.num_entries.values()))
            self._child(self._pass_tokens, model).observe(num_tokens)
            self._child(self._pass_device, model).observe(report.device_s)
            self._child(self._pass_padding_ratio, model).observe(num_padding / (num_tokens + num_padding))
            if report.predicted_s > 0:
                ratio = report.device_s / report.predicted_s
                self._child(self._pass_prediction_ratio, model, str(report.slot)).observe(ratio)
        if self._live is not None:
            self._live.observe_pass(report)

    # What comes out

    def num_requests_in_flight(self) -> int:
        """Embedding requests between their decoded body and their answer."""
        return int(next(iter(self.requests_in_flight.collect())).samples[0].value)

    async def refresh(self) -> None:
        """Have the GPUs read anew, where their driver is quick and was not asked within this second."""
        if self._gpus is not None:
            await self._gpus.refresh()

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the exposition format that the scraper accepts.

        Written at once it would hold the event loop for some ten milliseconds (1,000 series), which is more
        than a query's pass; so the loop goes on between two metrics.

        Returns:
            The text, and its content type.
        """
        encode, content_type = choose_encoder(accept)
        parts: list[bytes] = []
        for metric in self.registry.collect():
            parts.append(encode(SnapshotCollector(partial(iter, [metric]))).removesuffix(_OPENMETRICS_END))
            await asyncio.sleep(0)
        if content_type.startswith(_OPENMETRICS):
            parts.append(_OPENMETRICS_END)
        return b"".join(parts), content_type

    # How it is kept

    @property
    def _model(self) -> str:
        return self._engine.served_name if self._engine is not None else ""

    def _child(self, collector: C, *labels: str) -> C:
        """``collector.labels(*labels)``, looked up without its lock: there are two dozen for each request."""
        key = (collector, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = collector.labels(*labels)
        return cast("C", child)

    def _counter(self, family: Family) -> Counter:
        return Counter(family.name, family.text, family.labels, registry=self.registry)

    def _gauge(self, family: Family) -> Gauge:
        return Gauge(family.name, family.text, family.labels, registry=self.registry)

    def _histogram(self, family: Family, *, extra_bound: float | None = None) -> Histogram:
        bounds = {*family.buckets, *([] if extra_bound is None else [extra_bound])}
        return Histogram(
            family.name, family.text, family.labels, buckets=sorted(bounds), registry=self.registry
        )
