"""What is counted where it happens, what is read at a scrape, and that both keep the laws of names and labels."""

import asyncio
import inspect
import re
from dataclasses import replace
from http import HTTPStatus
from typing import cast

import pytest
from litestar.exceptions import HTTPException
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from app import connection, inputs, metric_families
from app.answers import ANSWERS, explain
from app.budget import FREE_BYTES, BodyBudget
from app.engine import Embeddings, EngineStatistics
from app.fetch import FetchFailure
from app.live import LiveView
from app.metric_families import FAMILIES, LABELS, SECTIONS, Family, Kind
from app.metrics import COUNTED_FROM_START, Metrics
from app.routes import embeddings
from app.settings import TokenIds
from batching import CostModel, DeadlineError, Lane, LaneStatistics, PassReport, Shape
from model.images import DecoderStatistics
from model.worker import DeviceMemory, WorkerStatistics
from tests.app.fake_nvml import FakeNvml, gpus_of
from tests.app.fakes import IDLE, FakeEngine, Gateway, with_settings

OURS = "laneway_"

REPORT = PassReport(
    slot=0,
    num_entries={Lane.QUERY: 1, Lane.DOCUMENT: 3},
    num_tokens={Lane.QUERY: 10, Lane.DOCUMENT: 90},
    run_s=0.02,
    device_s=0.015,
    predicted_s=0.014,
    oldest_wait_s=0.001,
    is_urgent=False,
    breaks_in=False,
)

CARD_MEMORY = DeviceMemory(allocated_bytes=300, reserved_bytes=700, peak_allocated_bytes=500)
ON_A_CARD = WorkerStatistics(
    is_ready=True,
    pid=7,
    num_restarts=2,
    num_passes=40,
    rss_bytes=1_000_000,
    device="cuda:1",
    gpu_uuid="GPU-1",
    device_s=3.5,
    num_out_of_memory=4,
    memory=CARD_MEMORY,
)


class EngineWith(FakeEngine):
    """An engine that tells these statistics of its workers, its lanes and its cost model."""

    def __init__(
        self,
        *workers: WorkerStatistics,
        query: LaneStatistics = IDLE,
        cost: CostModel | None = None,
    ) -> None:
        super().__init__()
        self._workers = workers
        self._cost = cost or CostModel()
        self.lanes[Lane.QUERY] = query

    def statistics(self) -> EngineStatistics:
        told = super().statistics()
        return replace(told, workers=self._workers or told.workers, cost=self._cost.figures())


def exported(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Everything of ours that has samples: label names by the metric's name."""
    found: dict[str, set[str]] = {}
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        for sample in metric.samples:
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    return found


async def everything() -> Gateway:
    """A gateway that has done a bit of everything, so that each of its metrics has a sample."""
    decoder = DecoderStatistics(
        pids=(1,),
        num_decoding=0,
        num_waiting_queries=0,
        num_waiting_documents=0,
        num_decoded=1,
        num_refused=0,
        num_timeouts=0,
        num_crashes=0,
        num_abandoned=0,
        num_restarts=0,
    )
    engine = EngineWith(ON_A_CARD)
    engine.decoder = decoder
    gateway = Gateway(engine, metrics=Metrics(gpus=gpus_of(FakeNvml())[0], version="1.2.3"))
    await gateway.embed("a")
    await gateway.embed([1, 2])
    await gateway.get("/nowhere")
    gateway.metrics.observe_pass(REPORT)
    gateway.metrics.observe_pass(replace(REPORT, error="WorkerDiedError"))
    await gateway.get("/metrics")
    return gateway


# Names and labels ------------------------------------------------------------------------------------------


async def test_what_is_exported_is_what_is_written_down_and_nothing_else():
    """The documentation, the dashboards and the alerts are made of what is written down."""
    registry = (await everything()).metrics.registry
    found = {name: labels for name, labels in exported(registry).items() if name.startswith(OURS)}
    assert found == {family.name: set(family.labels) for family in FAMILIES}


async def test_what_is_exported_has_the_type_and_the_text_that_are_written_down():
    text = (await (await everything()).get("/metrics")).body.decode()
    told = {
        metric.name + ("_total" if metric.type == "counter" else ""): (metric.type, metric.documentation)
        for metric in text_string_to_metric_families(text)
    }
    for family in FAMILIES:
        assert told[family.name] == (family.kind.value, family.text)


def test_every_family_has_its_section_and_no_name_stands_for_two():
    defined = {id(value) for value in vars(metric_families).values() if isinstance(value, Family)}
    assert defined == {id(family) for section in SECTIONS for family in section.families}
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) == len(defined)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_name_says_what_is_counted_and_in_what_unit(family: Family):
    """The rules of https://prometheus.io/docs/practices/naming/, and of promtool's lint."""
    assert re.fullmatch(r"laneway_[a-z]+(_[a-z]+)*", family.name)
    assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
    assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb|gauge|counter|histogram)\b", family.name)
    for unit in ("seconds", "bytes", "ratio"):
        if f"_{unit}" in family.name:
            assert re.search(rf"_{unit}(_total)?$", family.name), "the unit comes last"
    assert not re.search(r"_(count|sum|bucket|info)_", family.name)
    assert family.text.endswith(".")
    assert (family.kind is Kind.HISTOGRAM) == bool(family.buckets)
    assert list(family.buckets) == sorted(set(family.buckets))
    assert not {"le", "quantile"} & set(family.labels), "Prometheus' own"


def test_every_label_is_explained_and_none_is_explained_in_vain():
    assert {label for family in FAMILIES for label in family.labels} == set(LABELS)


# Outcomes and reasons --------------------------------------------------------------------------------------


def values_told(registry: CollectorRegistry, family: Family) -> set[str]:
    """What the label ``outcome`` or ``reason`` of a family holds."""
    return {
        sample.labels[label]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == family.name
        for label in ("outcome", "reason")
        if label in sample.labels
    }


def test_every_outcome_and_every_reason_is_explained():
    for family in FAMILIES:
        assert bool(family.values) == bool({"outcome", "reason"} & set(family.labels)), family.name
        assert all(meaning.endswith(".") for meaning in family.values.values())


def test_the_reasons_are_those_of_every_answer():
    """Of exceptions, of the framework's own statuses, of the connection, and of clients that left."""
    framework = {explain(HTTPException(status_code=status)).reason for status in HTTPStatus if status >= 400}
    refused = re.findall(r'reason="(\w+)"', inspect.getsource(connection))
    assert {*framework, *refused, "cancelled"} | {answer.reason for answer in ANSWERS.values()} == set(
        metric_families.REQUEST_FAILURES.values
    )


def test_the_outcomes_of_token_arrays_are_those_that_are_counted():
    refused = re.findall(r'outcome="(\w+)"', inspect.getsource(inputs) + inspect.getsource(embeddings))
    read = set(TokenIds) - {TokenIds.REJECT}
    assert {*read, *refused} == set(metric_families.TOKEN_ARRAYS.values)


async def test_the_outcomes_that_are_told_are_those_that_are_explained():
    registry = (await everything()).metrics.registry
    for family in (
        metric_families.QUEUE_OUTCOMES,
        metric_families.IMAGE_FETCHES,
        metric_families.IMAGE_DECODES,
        metric_families.REQUEST_FAILURES,
    ):
        assert values_told(registry, family) == set(family.values)
    assert set(FetchFailure) < set(metric_families.IMAGE_FETCHES.values)


# From the start --------------------------------------------------------------------------------------------

POSTED_TO = {
    "/v1/embeddings",
    "/embeddings",
    "/v2/embed",
    "/v1/multimodalembeddings",
    "/embeddings/text",
    "/embeddings/image",
    "/embeddings/fused",
    "/similarity",
}


def test_what_alerts_compare_is_0_before_it_has_happened():
    """A series that begins with its first events hides them: `increase()` knows of no 0 before."""
    gateway = Gateway()
    for reason in metric_families.REQUEST_FAILURES.values:
        assert gateway.sample("laneway_request_failures_total", reason=reason) == 0
    for lane in Lane:
        assert gateway.sample("laneway_deadline_misses_total", model="tiny", lane=lane.value) == 0
    assert gateway.sample("laneway_pass_failures_total", model="tiny") == 0
    assert gateway.sample("laneway_pass_items_count", model="tiny") == 0
    posted = {
        (sample.labels["route"], int(sample.labels["status"])): (sample.labels["method"], sample.value)
        for metric in gateway.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "laneway_http_requests_total"
    }
    assert posted == {(route, status): ("POST", 0) for route in POSTED_TO for status in COUNTED_FROM_START}


async def test_a_failure_is_counted_in_the_series_that_was_there():
    """Under another path template the zeros would be of series that nothing is ever added to."""
    gateway = Gateway(FakeEngine(failure=RuntimeError("no")))
    await gateway.embed("a")
    route = {"route": "/v1/embeddings", "method": "POST"}
    assert gateway.sample("laneway_http_requests_total", **route, status="500") == 1
    assert gateway.sample("laneway_request_failures_total", reason="internal") == 1
    gateway.metrics.observe_pass(replace(REPORT, error="WorkerDiedError"))
    assert gateway.sample("laneway_pass_failures_total", model="tiny") == 1


# Requests --------------------------------------------------------------------------------------------------


async def test_a_missed_deadline_is_counted_in_its_lane():
    gateway = Gateway(FakeEngine(failure=DeadlineError(waited_s=0.1)))
    assert (await gateway.embed("a", {"X-Priority": "query"})).status == 408
    gateway.engine.failure = RuntimeError("no")
    await gateway.embed("a", {"X-Priority": "query"})

    def misses(lane: str) -> float | None:
        return gateway.sample("laneway_deadline_misses_total", model="tiny", lane=lane)

    assert (misses("query"), misses("document")) == (1, 0)


def test_a_request_that_did_not_arrive_in_time_missed_no_deadline():
    """Its 408 is of the connection; which lane it wanted nobody knows."""
    metrics = Metrics()
    metrics.observe_http("unmatched", "POST", 408, 30.0, failure="timeout", lane=None)
    assert "laneway_deadline_misses_total" not in exported(metrics.registry)


async def test_whole_requests_are_told_by_their_lane():
    gateway = Gateway()
    await gateway.embed("a", {"X-Priority": "query"})
    await gateway.embed(["a", "b"], {"X-Priority": "document"})
    gateway.engine.failure = RuntimeError("no")
    await gateway.embed("a", {"X-Priority": "query"})

    def count(lane: str, status_class: str) -> float | None:
        return gateway.sample(
            "laneway_request_duration_seconds_count", model="tiny", lane=lane, status_class=status_class
        )

    assert (count("query", "2xx"), count("query", "5xx"), count("document", "2xx")) == (1, 1, 1)


async def test_a_request_that_came_to_no_lane_is_in_none():
    """It is told by its route; in a lane's latency it would look like a fast answer."""
    gateway = Gateway()
    await gateway.get("/nowhere")
    await gateway.embed([])
    await gateway.post("/v1/embeddings", {"model": "another", "input": "a"})
    assert "laneway_request_duration_seconds" not in exported(gateway.metrics.registry)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": "a"}),
        ("/v2/embed", {"model": "tiny", "input_type": "search_query", "texts": ["a"]}),
        ("/embeddings/text", {"texts": ["a"]}),
        ("/similarity", {"texts": ["a", "b"]}),
    ],
)
async def test_a_request_of_any_dialect_is_told_stage_by_stage(path: str, body: object):
    gateway = Gateway()
    assert (await gateway.post(path, body)).status == 200
    stages = {
        sample.labels["stage"]: sample.value
        for metric in gateway.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "laneway_stage_duration_seconds_count"
    }
    assert stages == {"prepare": 1, "queue": 1, "worker": 1, "inference": 1, "encode": 1}


async def test_stages_are_told_in_seconds_and_none_is_longer_than_the_request():
    gateway = Gateway(FakeEngine(queue_s=0.0015))
    await gateway.embed("a", {"X-Priority": "query"})

    def seconds(stage: str) -> float:
        return gateway.sample(
            "laneway_stage_duration_seconds_sum", model="tiny", lane="query", stage=stage
        ) or pytest.fail(stage)

    assert (seconds("queue"), seconds("inference")) == (0.0015, 0.004)
    whole = gateway.sample(
        "laneway_request_duration_seconds_sum", model="tiny", lane="query", status_class="2xx"
    )
    assert whole is not None
    assert 0 < seconds("encode") < whole


async def test_a_request_that_failed_has_no_time_of_encoding():
    gateway = Gateway(FakeEngine(failure=RuntimeError("no")))
    await gateway.embed("a")
    assert "laneway_stage_duration_seconds" not in exported(gateway.metrics.registry)


@pytest.mark.parametrize(("slo_s", "bound"), [(0.075, "0.075"), (0.1, "0.1")])
def test_the_promise_for_queries_is_a_bound_of_their_latency(slo_s: float, bound: str):
    """Between two bounds the part that was in time would be a guess."""
    metrics = Metrics(query_slo_s=slo_s)
    metrics.observe_http("/v1/embeddings", "POST", 200, slo_s, failure=None, lane=Lane.QUERY)
    labels = {"model": "", "lane": "query", "status_class": "2xx", "le": bound}
    assert metrics.registry.get_sample_value("laneway_request_duration_seconds_bucket", labels) == 1


# Passes and their cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_padding", "ratio"), [(0, 0.0), (25, 0.2)])
def test_padding_is_told_as_a_part_of_what_was_computed(num_padding: int, ratio: float):
    gateway = Gateway()
    gateway.metrics.observe_pass(replace(REPORT, num_padding_tokens=num_padding))
    assert gateway.sample("laneway_pass_padding_ratio_sum", model="tiny") == ratio
    assert gateway.sample("laneway_pass_padding_ratio_bucket", model="tiny", le="0.0") == (ratio == 0)


def test_predictions_are_held_against_each_worker():
    """One that is slower than its equals has another device, or shares it."""
    gateway = Gateway()
    gateway.metrics.observe_pass(replace(REPORT, slot=0, device_s=0.02, predicted_s=0.02))
    gateway.metrics.observe_pass(replace(REPORT, slot=1, device_s=0.03, predicted_s=0.02))
    ratios = [
        gateway.sample("laneway_pass_prediction_ratio_sum", model="tiny", worker=worker)
        for worker in ("0", "1")
    ]
    assert ratios == [1.0, 1.5]


def test_what_the_cost_model_has_learned_is_told():
    cost = CostModel(fixed_s=0.003, per_token_s=0.0002, per_image_token_s=0.001, floor_s=0.005)
    gateway = Gateway(EngineWith(cost=cost))
    assert gateway.sample("laneway_cost_fixed_seconds", model="tiny") == 0.003
    assert gateway.sample("laneway_cost_token_seconds", model="tiny") == 0.0002
    assert gateway.sample("laneway_cost_squared_token_seconds", model="tiny") == 0
    assert gateway.sample("laneway_cost_image_token_seconds", model="tiny") == 0.001
    assert gateway.sample("laneway_cost_floor_seconds", model="tiny") == 0.005
    assert gateway.sample("laneway_cost_residual_ratio", model="tiny", percentile="99") == 0


def test_the_coefficients_that_are_told_are_those_that_predict():
    """On a device that is slow today all of them are larger."""
    cost = CostModel(fixed_s=0.003, per_token_s=0.0002, per_square_s=1e-7, per_image_token_s=0.001)
    cost.observe(Shape(num_tokens=100), 0.046)
    cost.observe(Shape(num_tokens=100), 0.069)
    figures = cost.figures()
    shape = Shape(num_tokens=50, num_squared=900, num_image_tokens=20)
    predicted_s = (
        figures.fixed_s
        + 50 * figures.per_token_s
        + 900 * figures.per_square_s
        + 20 * figures.per_image_token_s
    )
    assert predicted_s == pytest.approx(cost.predict_s(shape))
    assert figures.fixed_s > 0.003
    assert (figures.median_residual, figures.p99_residual) == (cost.residual(0.5), cost.residual(0.99))


# What is read at a scrape ----------------------------------------------------------------------------------


def test_a_lane_is_told_beside_its_limits():
    busy = replace(IDLE, num_waiting=7, num_running=2, waiting_s=0.5, oldest_wait_s=0.2, num_promised=3)
    gateway = Gateway(EngineWith(query=busy))
    lane = {"model": "tiny", "lane": "query"}
    limits = gateway.engine.limits
    assert gateway.sample("laneway_queue_items", **lane) == 7
    assert gateway.sample("laneway_queue_limit_items", **lane) == limits.max_waiting_entries[Lane.QUERY]
    assert gateway.sample("laneway_queue_device_seconds", **lane) == 0.5
    assert gateway.sample("laneway_queue_limit_seconds", **lane) == limits.max_waiting_s[Lane.QUERY]
    assert gateway.sample("laneway_queue_oldest_age_seconds", **lane) == 0.2
    assert gateway.sample("laneway_running_items", **lane) == 2
    assert gateway.sample("laneway_queue_promised_items", **lane) == 3
    assert gateway.sample("laneway_query_slo_seconds", model="tiny") == limits.query_slo_s


def test_a_worker_on_a_card_tells_its_memory_and_which_card_it_is():
    gateway = Gateway(EngineWith(ON_A_CARD))
    worker = {"model": "tiny", "worker": "0"}
    on_device = {**worker, "device": "cuda:1"}
    assert gateway.sample("laneway_worker_info", **on_device, gpu_uuid="GPU-1") == 1
    assert gateway.sample("laneway_device_busy_seconds_total", **on_device) == 3.5
    assert gateway.sample("laneway_torch_memory_allocated_bytes", **on_device) == 300
    assert gateway.sample("laneway_torch_memory_reserved_bytes", **on_device) == 700
    assert gateway.sample("laneway_torch_memory_peak_allocated_bytes", **on_device) == 500
    assert gateway.sample("laneway_worker_out_of_memory_passes_total", **worker) == 4
    assert gateway.sample("laneway_worker_passes_total", **worker) == 40


async def test_without_a_card_its_memory_is_absent():
    gateway = Gateway()
    text = (await gateway.get("/metrics")).body
    assert b"laneway_torch" not in text
    assert b'laneway_worker_info{device="cpu",gpu_uuid="",model="tiny",worker="0"} 1.0' in text


@pytest.mark.parametrize(("pid", "rss_bytes"), [(None, None), (7, 0)])
def test_a_worker_that_has_no_process_has_no_memory(pid: int | None, rss_bytes: int | None):
    """Nor has one that was just killed: of a process that nobody has waited for, the kernel tells 0."""
    dead = replace(ON_A_CARD, is_ready=False, pid=pid, rss_bytes=rss_bytes, memory=None)
    gateway = Gateway(EngineWith(dead))
    assert gateway.sample("laneway_worker_ready", model="tiny", worker="0") == 0
    assert gateway.sample("laneway_worker_resident_memory_bytes", model="tiny", worker="0") is None
    assert gateway.sample("laneway_worker_restarts_total", model="tiny", worker="0") == 2


async def test_a_body_counts_while_its_request_is_worked_on():
    gateway = Gateway(settings=with_settings(limits={"max_held_body_bytes": 1_000_000}))
    gateway.engine.hold = asyncio.Event()
    asked = asyncio.ensure_future(gateway.embed("a" * 100_000))
    await gateway.engine.started.wait()
    held = gateway.sample("laneway_held_body_bytes")
    gateway.engine.hold.set()
    await asked
    assert held is not None
    assert 100_000 - FREE_BYTES < held < 101_000 - FREE_BYTES
    assert gateway.sample("laneway_held_body_bytes") == 0
    assert gateway.sample("laneway_held_body_limit_bytes") == 1_000_000


def test_images_are_told_beside_their_limits():
    """Queries have a room of their own, on top of the setting."""
    gateway = Gateway(settings=with_settings(media={"max_held_image_bytes": 400_000_000}))
    limits = [
        gateway.sample("laneway_held_image_limit_bytes", lane=lane) for lane in ("query", "document", "batch")
    ]
    assert limits == [100_000_000, 400_000_000, None]
    assert gateway.sample("laneway_held_image_bytes", lane="query") == 0
    assert gateway.sample("laneway_held_image_bytes", lane="document") == 0


async def test_bodies_that_wait_for_memory_are_counted_until_they_give_up():
    metrics = Metrics()
    budget = BodyBudget(1_000, max_body_bytes=10**6, max_wait_s=30)
    metrics.watch_bodies(budget)
    is_held, may_end = asyncio.Event(), asyncio.Event()

    async def app(_scope: object, receive: object, _send: object) -> None:
        await receive()  # type: ignore[operator]
        is_held.set()
        await may_end.wait()

    async def upload() -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": bytes(FREE_BYTES + 900), "more_body": False}

        scope = {"type": "http", "headers": [], "state": {}}
        await budget.around(app)(scope, receive, None)  # type: ignore[arg-type]

    def waiting() -> float | None:
        return metrics.registry.get_sample_value("laneway_body_waiting_requests")

    first = asyncio.ensure_future(upload())
    await is_held.wait()
    second = asyncio.ensure_future(upload())
    await asyncio.sleep(0)
    assert (waiting(), metrics.registry.get_sample_value("laneway_held_body_bytes")) == (1, 900)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert waiting() == 0
    may_end.set()
    await first


async def test_the_time_of_loading_and_the_versions_are_told():
    gateway = Gateway(metrics=Metrics(version="1.2.3"))
    text = (await gateway.get("/metrics")).body.decode()
    assert gateway.sample("laneway_model_load_seconds", model="tiny") == 12.5
    assert re.search(
        r'laneway_build_info\{torch="\d[^"]+",transformers="\d[^"]+",version="1\.2\.3"\} 1', text
    )


async def test_the_gateways_own_process_is_told():
    text = (await Gateway().get("/metrics")).body.decode()
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"):
        assert re.search(rf"^{name} [1-9]", text, re.M), name
    assert re.search(r"^python_gc_collections_total\{generation=\"2\"\} \d", text, re.M)
    assert re.search(r"^python_info\{", text, re.M)


# The text --------------------------------------------------------------------------------------------------


async def test_both_formats_are_what_their_parsers_read():
    gateway = await everything()
    text = await gateway.get("/metrics")
    openmetrics = await gateway.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    plain = {metric.name for metric in text_string_to_metric_families(text.body.decode())}
    strict = {metric.name for metric in read_openmetrics(openmetrics.body.decode())}
    assert plain == strict
    assert {family.name.removesuffix("_total") for family in FAMILIES} <= plain


async def test_the_loop_goes_on_while_a_scrape_is_written():
    """A thousand series take longer than a query's pass."""
    metrics = (await everything()).metrics
    loop = asyncio.get_running_loop()
    num_turns = 0

    def turn() -> None:
        nonlocal num_turns
        num_turns += 1
        loop.call_soon(turn)

    turn()
    await metrics.render("")
    assert num_turns > len(FAMILIES)


# Who else is told ------------------------------------------------------------------------------------------


async def test_whoever_watches_live_is_told_the_same():
    told: list[str] = []

    class Watching:
        def observe_http(self, route: str, method: str, *_: object, **more: object) -> None:
            told.append(f"{method} {route} in {more['lane']}")

        def observe_embeddings(self, embeddings: Embeddings, *, lane: Lane) -> None:
            told.append(f"{len(embeddings.rows)} rows in {lane}")

        def observe_pass(self, report: PassReport) -> None:
            told.append(f"a pass of {report.device_s} s, error {report.error}")

    gateway = Gateway(metrics=Metrics(cast("LiveView", Watching())))
    await gateway.embed(["a", "b"], {"X-Priority": "document"})
    gateway.metrics.observe_pass(REPORT)
    gateway.metrics.observe_pass(replace(REPORT, error="WorkerDiedError"))
    assert told == [
        "2 rows in document",
        "POST /v1/embeddings in document",
        "a pass of 0.015 s, error None",
        "a pass of 0.015 s, error WorkerDiedError",
    ]
