"""Traces: what a span says, what it never says, and that it reaches a collector."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk import _shared_internal
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app.facts import QUIET_ROUTES, Computed, RequestFacts, Stage, note_stage, stages_var
from app.logs import trace_id_var
from app.lost_spans import EXPORTER_LOGGER, PROCESSOR_LOGGER, LossReporter, OneAMinute, WatchedSession
from app.settings import ServerSettings
from app.spans import SpanTracer, otlp_exporter
from app.tracing import TracingError, open_tracer, stages_of, who_asks
from batching import DeadlineError, Lane
from tests.app.fakes import FakeEngine, Gateway
from tests.app.running import taken_socket

ROOT = Path(__file__).parents[2]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TEXT = "the client's own words"
KEY = "sk-of-the-client"


@pytest.fixture(autouse=True)
def nothing_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may trace other programs."""
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name in ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


class Traced:
    """A gateway whose spans stay in memory."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = SpanTracer(SimpleSpanProcessor(self.exporter), version="1.2.3")
        self.gateway = Gateway(engine, tracer=self.tracer)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """What was exported, by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def span(self) -> ReadableSpan:
        """The one span of a server."""
        [span] = [one for one in self.exporter.get_finished_spans() if one.kind is SpanKind.SERVER]
        return span


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# Spans -----------------------------------------------------------------------------------------------------


async def test_a_request_is_a_span_with_its_stages_below_it():
    traced = Traced()
    answer = await traced.gateway.embed(
        ["one two", "three"], {"x-request-id": "mine"}, encoding_format="base64"
    )
    assert answer.status == 200
    assert attributes_of(traced.span) == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": 2,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "laneway",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.encoding_formats": ("base64",),
        "gen_ai.embeddings.dimension.count": 8,
        "gen_ai.usage.input_tokens": 3,
        "laneway.request_id": "mine",
        "laneway.lane": "document",
        "laneway.items": 2,
        "laneway.queue_s": 0.0015,
        "laneway.device_s": 0.004,
    }
    assert traced.span.name == "POST /v1/embeddings"
    assert traced.span.status.status_code is StatusCode.UNSET
    stages = {name: span for name, span in traced.spans.items() if span is not traced.span}
    assert list(stages) == ["prepare", "queue", "worker", "device", "encode"]
    for span in stages.values():
        assert span.parent == traced.span.get_span_context()
        assert traced.span.start_time - 10**6 <= span.start_time <= span.end_time <= traced.span.end_time + 10**6  # fmt: skip


async def test_a_span_hangs_below_its_clients():
    """W3C Trace Context."""
    traced = Traced()
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}
    await traced.gateway.embed("a", headers)
    context, parent = traced.span.get_span_context(), traced.span.parent
    assert parent is not None
    assert f"{context.trace_id:032x}" == TRACE_ID
    assert f"{parent.span_id:016x}" == PARENT_ID
    assert context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize(
    "traceparent", ["", "00", f"00-{TRACE_ID}-{'0' * 16}-01", f"00-{'x' * 32}-{PARENT_ID}-01", "é", TEXT]
)
async def test_a_broken_parent_is_no_parent(traceparent: str):
    traced = Traced()
    assert (await traced.gateway.embed("a", {"traceparent": traceparent})).status == 200
    assert traced.span.parent is None


async def test_what_a_client_does_not_sample_is_not_exported():
    traced = Traced()
    await traced.gateway.embed("a", {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    assert traced.spans == {}


async def test_a_share_of_requests_can_be_sampled(monkeypatch: pytest.MonkeyPatch):
    """As for every program of OpenTelemetry."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    traced = Traced()
    await traced.gateway.embed("a")
    assert traced.spans == {}


@pytest.mark.parametrize("path", sorted(QUIET_ROUTES))
async def test_what_machines_ask_every_few_seconds_is_not_traced(path: str):
    traced = Traced()
    await traced.gateway.get(path)
    assert traced.spans == {}


async def test_a_clients_mistake_is_no_error_of_the_server():
    """The conventions: a server's span is in error from 500 on."""
    traced = Traced()
    await traced.gateway.embed([])
    assert traced.span.status.status_code is StatusCode.UNSET
    attributes = attributes_of(traced.span)
    assert (attributes["http.response.status_code"], attributes["laneway.failure"]) == (400, "validation")
    assert "error.type" not in attributes
    assert "gen_ai.operation.name" not in attributes


async def test_a_failure_of_the_server_is_an_error():
    traced = Traced(FakeEngine(failure=RuntimeError(TEXT)))
    await traced.gateway.embed("a")
    assert traced.span.status.status_code is StatusCode.ERROR
    attributes = attributes_of(traced.span)
    assert (attributes["error.type"], attributes["laneway.failure"]) == ("500", "internal")
    assert attributes["laneway.lane"] == "query"
    assert list(traced.spans) == ["POST /v1/embeddings"]


async def test_a_client_that_leaves_was_sent_no_status():
    traced = Traced(FakeEngine(hold=asyncio.Event()))
    leaves = asyncio.Event()
    leaves.set()
    body = b'{"model": "tiny", "input": "a"}'
    await traced.gateway.request("POST", "/v1/embeddings", body, leaves=leaves)
    attributes = attributes_of(traced.span)
    assert attributes["laneway.failure"] == "cancelled"
    assert "http.response.status_code" not in attributes


@pytest.mark.parametrize("failure", [None, RuntimeError(f"cannot read {TEXT}"), DeadlineError(waited_s=1.0)])
async def test_no_span_holds_what_a_client_sent(failure: Exception | None):
    traced = Traced(FakeEngine(failure=failure))
    headers = {"authorization": f"Bearer {KEY}", "user-agent": KEY, "cookie": KEY}
    await traced.gateway.post(
        f"/v1/embeddings?key={KEY}", {"model": "tiny", "input": TEXT, "user": KEY}, headers
    )
    await traced.gateway.post(f"/{KEY}/{TEXT}", {}, headers)
    await traced.gateway.get(f"/v1/models/{KEY}", **headers)
    await traced.gateway.request("BREW" + KEY.upper(), "/v1/embeddings", headers=headers)
    exported = "".join(span.to_json() for span in traced.exporter.get_finished_spans())
    assert "/v1/models/{model_id}" in exported
    assert '"_OTHER"' in exported
    for secret in (TEXT, KEY, KEY.upper()):
        assert secret not in exported


async def test_log_lines_name_the_trace(caplog: pytest.LogCaptureFixture):
    """From a line to its trace: that is what the id is for."""
    seen: list[str | None] = []
    caplog.handler.addFilter(lambda _record: seen.append(trace_id_var.get()) or True)
    caplog.set_level(logging.INFO, logger="app.observe")
    await Traced().gateway.embed("a", {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    assert seen == [TRACE_ID]
    assert trace_id_var.get() is None


def test_the_service_has_our_name_unless_the_environment_has_another(monkeypatch: pytest.MonkeyPatch):
    def service() -> tuple[object, object]:
        exporter = InMemorySpanExporter()
        tracer = SpanTracer(SimpleSpanProcessor(exporter), version="1.2.3")
        trace = tracer.begin({"type": "http", "path": "/", "method": "GET", "headers": []})
        assert trace is not None
        trace._span.end()
        attributes = exporter.get_finished_spans()[0].resource.attributes
        return attributes["service.name"], attributes["service.version"]

    assert service() == ("laneway", "1.2.3")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "search-embeddings")
    assert service() == ("search-embeddings", "1.2.3")


# Stages ----------------------------------------------------------------------------------------------------


def facts_with(**times: float) -> RequestFacts:
    none = dict.fromkeys(["prepare_s", "queue_s", "worker_wait_s", "device_s"], 0.0)
    computed = none | {"ended_s": 20.0} | times
    return RequestFacts(
        lane=Lane.QUERY,
        model="tiny",
        num_items=1,
        encoding_format="float",
        began_s=10.0,
        computed=Computed(num_tokens=1, num_image_tokens=0, dimension=8, **computed),
    )


def spans_of(stages: list[Stage]) -> dict[str, tuple[float, float]]:
    return {stage.name: (stage.began_s, stage.ended_s) for stage in stages}


def test_stages_follow_from_what_is_known_afterwards():
    facts = facts_with(prepare_s=1.0, queue_s=3.0, worker_wait_s=2.0, device_s=4.0)
    assert spans_of(stages_of(facts, [], encode_s=0.5)) == {
        "prepare": (10, 11),
        "queue": (11, 14),
        "worker": (14, 16),
        "device": (16, 20),
        "encode": (20, 20.5),
    }


def test_preparing_begins_where_images_end():
    noted = [Stage(name="fetch", began_s=10, ended_s=12), Stage(name="decode", began_s=12, ended_s=15)]
    stages = stages_of(facts_with(prepare_s=1.0), noted, encode_s=None)
    assert stages[:2] == noted
    assert spans_of(stages)["prepare"] == (15, 16)


def test_no_stage_ends_after_the_rows_were_there():
    """Two workers at once have more device time than there was time."""
    facts = facts_with(prepare_s=2.0, queue_s=30.0, worker_wait_s=5.0, device_s=16.0)
    spans = spans_of(stages_of(facts, [], encode_s=None))
    assert (spans["queue"], spans["worker"], spans["device"]) == ((12, 20), (20, 20), (12, 20))


def test_a_request_without_vectors_has_the_stages_it_came_to():
    noted = [Stage(name="fetch", began_s=10, ended_s=12)]
    assert stages_of(None, noted, encode_s=None) == noted


async def test_a_stage_is_noted_for_the_request_whose_task_began_it():
    """Fetches run in tasks of their own."""
    stages: list[Stage] = []
    token = stages_var.set(stages)
    task = asyncio.create_task(noting("fetch"))
    stages_var.reset(token)
    await task
    await noting("of nobody")
    assert stages == [Stage(name="fetch", began_s=1.0, ended_s=2.0)]


async def noting(name: str) -> None:
    note_stage(name, 1.0, 2.0)


# Whether ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "environment", "asker"),
    [
        (None, {}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, None),
        ("http://here:4318", {}, "otlp_endpoint"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ("http://here:4318", {"OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_who_asks_for_traces(setting: str | None, environment: dict[str, str], asker: str | None):
    assert who_asks(setting, environment) == asker


def test_nobody_who_does_not_ask_is_traced():
    assert open_tracer(None, version="1") is None


def test_a_server_that_does_not_trace_does_not_load_the_sdk():
    script = "import sys, app.launch; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_traces_without_the_extra_are_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "app.spans")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingError) as caught:
        open_tracer("http://here:4318", version="1")
    assert str(caught.value) == (
        "otlp_endpoint asks for traces, but opentelemetry.exporter.otlp.proto.http.trace_exporter is not installed; "
        "install Laneway with its extra otel: pip install 'laneway[otel]'"
    )


def test_a_protocol_that_we_do_not_speak_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Sending HTTP to a port of gRPC fails a minute later, and says less."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracingError, match=r"^OTEL_EXPORTER_OTLP_PROTOCOL is grpc, but traces are sent as http/protobuf only$"):  # fmt: skip
        open_tracer("http://here:4317", version="1")


def test_the_protocol_of_traces_goes_before_the_one_of_all_signals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    tracer = open_tracer("http://here:4318", version="1")
    assert tracer is not None
    tracer.close()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    with pytest.raises(TracingError, match=r"^OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is grpc"):
        open_tracer("http://here:4318", version="1")


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://here", "http://here/?x=1", "http://"])
def test_the_setting_is_a_url(url: str, capsys: pytest.CaptureFixture[str]):
    from app.cli import run

    assert run(["check", "--otlp-endpoint", url]) == 2
    assert "It must be the URL of a collector, such as http://127.0.0.1:4318." in capsys.readouterr().err
    assert ServerSettings().otlp_endpoint is None


# A collector -----------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """An OTLP receiver that decodes what it is sent."""

    port: int
    status: int = 200
    """What it answers."""
    received: list[tuple[str, ExportTraceServiceRequest]] = field(default_factory=list)

    def spans(self) -> dict[str, bytes]:
        """The names of all spans, and their traces."""
        return {
            span.name: span.trace_id
            for _, request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Generator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/x-protobuf"
            it.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(it.status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    it = Collector(port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield it
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("by_setting", [True, False])
async def test_spans_reach_a_collector(collector: Collector, by_setting: bool, monkeypatch):
    url = f"http://127.0.0.1:{collector.port}"
    if not by_setting:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    tracer = open_tracer(url if by_setting else None, version="1.2.3")
    assert tracer is not None
    await Gateway(tracer=tracer).embed("a", {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    await asyncio.to_thread(tracer.close)
    assert {path for path, _ in collector.received} == {"/v1/traces"}
    assert collector.spans() == dict.fromkeys(
        ["POST /v1/embeddings", "prepare", "queue", "worker", "device", "encode"], bytes.fromhex(TRACE_ID)
    )
    resource = {one.key: one.value.string_value for one in collector.received[0][1].resource_spans[0].resource.attributes}  # fmt: skip
    assert resource["service.name"] == "laneway"


async def test_a_collector_that_is_gone_costs_the_end_seconds_and_the_requests_nothing(caplog):
    exporter = otlp_exporter("http://127.0.0.1:9")
    tracer = SpanTracer.exporting(exporter, version="1")
    assert (await Gateway(tracer=tracer).embed("a")).status == 200
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    await asyncio.to_thread(tracer.close)
    assert loop.time() - started_s < 5
    assert told(caplog) == ["the last spans were not sent within 3 s of the end and are lost"]
    exporter.shutdown()
    for thread in threading.enumerate():
        if thread.name == "close-tracer":
            thread.join()


# A collector that is away ----------------------------------------------------------------------------------

NUM_SPANS = 6
"""Of a request for texts: one of the server, and its stages."""


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What an operator reads of it, whoever wrote it."""
    writers = ("app.spans", "app.lost_spans", "opentelemetry", "urllib3", "requests")
    return [record.getMessage() for record in caplog.records if record.name.startswith(writers)]


class Sending:
    """A gateway that sends its spans by the real exporter, a batch for each request."""

    def __init__(self, url: str) -> None:
        self._processor = BatchSpanProcessor(otlp_exporter(url))
        self._gateway = Gateway(tracer=SpanTracer(self._processor, version="1"))

    async def send(self, num_batches: int) -> None:
        for _ in range(num_batches):
            assert (await self._gateway.embed("a")).status == 200
            await asyncio.to_thread(self._processor.force_flush)

    def close(self) -> None:
        self._processor.shutdown()


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[str], Sending]]:
    # Retries would make a batch take ten seconds.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    opened: list[Sending] = []

    def make(url: str) -> Sending:
        opened.append(Sending(url))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


async def test_a_closed_port_is_told_once(sending: Callable[[str], Sending], caplog):
    with taken_socket() as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        await sending(url).send(5)
    assert told(caplog) == [
        f"traces do not reach {url}/v1/traces (ConnectionRefusedError: [Errno 111] Connection refused): "
        "their spans are lost until another line says so"
    ]


async def test_a_collector_that_does_not_answer_is_told_once(sending: Callable[[str], Sending], caplog):
    with taken_socket() as silent:
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        await sending(url).send(2)
    (line,) = told(caplog)
    assert line.startswith(f"traces do not reach {url}/v1/traces (TimeoutError: timed out): ")


async def test_a_collector_that_refuses_is_told_once_and_what_was_lost_when_it_no_longer_does(
    collector: Collector, sending: Callable[[str], Sending], caplog
):
    """Without us it would be six lines for each of these batches: the exporter tries each six times."""
    collector.status = 503
    url = f"http://127.0.0.1:{collector.port}"
    gateway = sending(url)
    await gateway.send(3)
    assert len(collector.received) == 3 * 6
    (first,) = told(caplog)
    assert first == (
        f"traces do not reach {url}/v1/traces (503 Service Unavailable): "
        "their spans are lost until another line says so"
    )
    collector.status = 200
    await gateway.send(2)
    assert told(caplog) == [
        first, f"traces reach {url}/v1/traces again; 3 batches with {3 * NUM_SPANS} spans were lost"
    ]  # fmt: skip


@dataclass
class FakeExporter(SpanExporter):
    """Succeeds or fails as it is told; ``None``: it raises."""

    results: list[bool | None]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        succeeds = self.results.pop(0)
        if succeeds is None:
            raise RuntimeError("it has a bug")
        return SpanExportResult.SUCCESS if succeeds else SpanExportResult.FAILURE


def lines_of(results: list[bool | None], caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """What is told of batches that are sent every five seconds, and when."""
    time_s = 0
    reporter = LossReporter(
        FakeExporter(list(results)), WatchedSession(), url="http://here", clock=lambda: float(time_s)
    )
    lines: list[tuple[int, str]] = []
    for _ in results:
        caplog.clear()
        reporter.export([ReadableSpan("a"), ReadableSpan("b")])
        lines += [(time_s, line.partition(" http")[0] + line.partition(";")[2]) for line in told(caplog)]
        time_s += 5
    return lines


def test_a_collector_that_comes_and_goes_is_told_once_a_minute(caplog):
    assert lines_of([False, True] * 9, caplog) == [
        (0, "traces do not reach"),
        (5, "traces reach 1 batches with 2 spans were lost"),
        (60, "traces do not reach"),
        # And those that nothing was said of.
        (65, "traces reach 6 batches with 12 spans were lost"),
    ]


def test_a_loss_that_was_not_told_at_its_time_is_told_later(caplog):
    assert lines_of([False, True, False, *[True] * 12], caplog) == [
        (0, "traces do not reach"),
        (5, "traces reach 1 batches with 2 spans were lost"),
        (60, "traces reach 1 batches with 2 spans were lost"),
    ]


def test_an_exporter_that_raises_has_lost_its_batch(caplog):
    assert lines_of([None, True], caplog) == [
        (0, "traces do not reach"),
        (5, "traces reach 1 batches with 2 spans were lost"),
    ]


def test_a_full_queue_is_told_once_a_minute():
    """Every span that finds no room is a line otherwise."""
    now_s = 0.0
    rarely = OneAMinute(lambda: now_s)
    record = logging.LogRecord(PROCESSOR_LOGGER, logging.WARNING, "", 0, "Queue full", (), None)

    def passes(time_s: float) -> bool:
        nonlocal now_s
        now_s = time_s
        return rarely.filter(record)

    assert [time_s for time_s in range(0, 130, 10) if passes(time_s)] == [0, 60, 120]


def test_the_lines_of_others_are_those_that_their_loggers_write():
    """Names of a library, and one of them private: an update may change them."""
    LossReporter(FakeExporter([]), WatchedSession(), url="http://here")
    assert trace_exporter._logger.name == EXPORTER_LOGGER
    assert _shared_internal._logger.name == PROCESSOR_LOGGER
    assert any(isinstance(one, OneAMinute) for one in _shared_internal._logger.filters)


def test_no_line_holds_the_secrets_of_the_address(caplog):
    reporter = LossReporter(
        FakeExporter([False]), WatchedSession(), url=f"http://me:{KEY}@here:4318/v1?key={KEY}"
    )
    reporter.export([])
    (line,) = told(caplog)
    assert line.startswith("traces do not reach http://here:4318/v1 (")
    assert KEY not in line


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "/base/", "/base/v1/traces"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/exactly/here", "/exactly/here"),
    ],
)
async def test_the_environment_says_where(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str, path: str
):
    """The variable of traces is taken as it is, the other gets the path of traces."""
    monkeypatch.setenv(name, f"http://127.0.0.1:{collector.port}{value}")
    tracer = open_tracer(None, version="1")
    assert tracer is not None
    await Gateway(tracer=tracer).embed("a")
    await asyncio.to_thread(tracer.close)
    assert [received for received, _ in collector.received] == [path]
