"""A request as OpenTelemetry's spans: one of the server, and one below it for each stage.

Law: a span holds what the log line of the request holds, and no more. Of its path it holds the template:
``url.path`` and ``url.query``, which the conventions want, are left out, because clients write them.

The conventions for HTTP are stable (opentelemetry-semantic-conventions 1.41); those for generative AI are in
development, and know no server of embeddings: their attributes for clients stand on the server's span.
"""

import logging
import os
import threading
from collections.abc import Sequence
from time import monotonic_ns, time_ns
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
)
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.network_attributes import NETWORK_PROTOCOL_VERSION
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from app.facts import QUIET_ROUTES, RequestFacts, Stage
from app.lost_spans import LossReporter, WatchedSession
from app.observe import CLIENT_CLOSED_REQUEST, REQUEST_ID, UNMATCHED_ROUTE, Outcome, Scope
from app.tracing import stages_of

# https://github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md, as of 2026: in
# development, so these names may change. All of them stand here.
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_ENCODING_FORMATS = "gen_ai.request.encoding_formats"
GEN_AI_DIMENSION = "gen_ai.embeddings.dimension.count"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_IMAGE_TOKENS = "gen_ai.usage.image.input_tokens"

_SERVICE = "laneway"
_TRACES_PATH = "v1/traces"
_CREDENTIAL_VARIABLES = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
_CLOSE_TIMEOUT_S = 3.0
"""For what has not been sent when the server ends: a collector that is gone must not keep it."""
_PARENT_HEADERS = (b"traceparent", b"tracestate")
logger = logging.getLogger(__name__)

_propagator = TraceContextTextMapPropagator()


def otlp_exporter(endpoint: str | None) -> SpanExporter:
    """What sends spans to a collector over HTTP.

    Args:
        endpoint: The collector's URL, without the path of traces. ``None``: what the environment says.
    """
    url, session = _traces_url(endpoint), WatchedSession()
    # Given a session, an exporter does not ask the environment's plugin for one that has credentials.
    has_plugin = any(os.environ.get(name) for name in _CREDENTIAL_VARIABLES)
    exporter = OTLPSpanExporter(url, session=None if has_plugin else session)
    return LossReporter(exporter, session, url=url)


def _traces_url(endpoint: str | None) -> str:
    if endpoint is None and (url := os.environ.get(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT)):
        return url  # the variable of traces alone names their path, too
    base = endpoint or os.environ[OTEL_EXPORTER_OTLP_ENDPOINT]
    return f"{base.rstrip('/')}/{_TRACES_PATH}"


class SpanTracer:
    """Owns the provider of spans; begins one for every request but those of machines that look after it."""

    def __init__(self, processor: SpanProcessor, *, version: str) -> None:
        """Begin to trace.

        Args:
            processor: What takes the spans that have ended.
            version: The version of the program.
        """
        resource = Resource.create({SERVICE_VERSION: version})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # the environment names none
            resource = resource.merge(Resource({SERVICE_NAME: _SERVICE}))
        # Which requests are sampled is said by OTEL_TRACES_SAMPLER, which the provider reads.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SERVICE, version)

    @classmethod
    def exporting(cls, exporter: SpanExporter, *, version: str) -> "SpanTracer":
        """A tracer whose spans are sent from a thread, many at once."""
        return cls(BatchSpanProcessor(exporter), version=version)

    def begin(self, scope: Scope) -> "SpanTrace | None":
        """Begin the span of a request, below its client's if it names one; ``None``: it is not traced."""
        if scope["path"] in QUIET_ROUTES:
            return None
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _PARENT_HEADERS
        }
        parent = _propagator.extract(carrier) if carrier else None
        span = self._tracer.start_span("HTTP", context=parent, kind=SpanKind.SERVER)
        return SpanTrace(self, span, scope)

    def add(self, parent: Span, stage: Stage, *, offset_ns: int) -> None:
        """Add a stage below the span of a request.

        Args:
            parent: The request's span.
            stage: When it was, on the monotonic clock.
            offset_ns: What that clock is behind the time of day.
        """
        span = self._tracer.start_span(
            stage.name,
            context=set_span_in_context(parent),
            start_time=int(stage.began_s * 1e9) + offset_ns,
        )
        span.end(int(stage.ended_s * 1e9) + offset_ns)

    def close(self) -> None:
        """Send what has not been sent, and end. Blocks for seconds if the collector does not answer."""
        # The SDK's own time-outs are longer, and some of them do not hold (opentelemetry-python issue 4568).
        closing = threading.Thread(target=self._provider.shutdown, name="close-tracer", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)
        if closing.is_alive():
            logger.warning(
                "the last spans were not sent within %g s of the end and are lost", _CLOSE_TIMEOUT_S
            )


class SpanTrace:
    """The span of one request."""

    def __init__(self, tracer: SpanTracer, span: Span, scope: Scope) -> None:
        self._tracer = tracer
        self._span = span
        self._scope = scope

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return format_trace_id(self._span.get_span_context().trace_id)

    def end(self, outcome: Outcome, stages: Sequence[Stage]) -> None:
        """Say what became of the request, and end its span."""
        if self._span.is_recording():
            self._span.update_name(_name(outcome))
            self._span.set_attributes(_attributes(outcome, self._scope))
            if outcome.status >= 500:
                self._span.set_status(Status(StatusCode.ERROR, outcome.failure))
            offset_ns = time_ns() - monotonic_ns()
            for stage in stages_of(outcome.facts, stages, encode_s=outcome.encode_s):
                self._tracer.add(self._span, stage, offset_ns=offset_ns)
        self._span.end()


def _name(outcome: Outcome) -> str:
    method = "HTTP" if outcome.method == "other" else outcome.method
    return method if outcome.route == UNMATCHED_ROUTE else f"{method} {outcome.route}"


def _attributes(outcome: Outcome, scope: Scope) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        HTTP_REQUEST_METHOD: "_OTHER" if outcome.method == "other" else outcome.method,
        URL_SCHEME: scope["scheme"],
        NETWORK_PROTOCOL_VERSION: scope["http_version"],
        "laneway.request_id": scope[REQUEST_ID],
        **_server_attributes(scope.get("server")),
    }
    if outcome.route != UNMATCHED_ROUTE:
        attributes[HTTP_ROUTE] = outcome.route
    if outcome.status != CLIENT_CLOSED_REQUEST:  # nobody was sent that one
        attributes[HTTP_RESPONSE_STATUS_CODE] = outcome.status
    if outcome.status >= 500:
        attributes[ERROR_TYPE] = outcome.code or str(outcome.status)
    if outcome.failure is not None:
        attributes["laneway.failure"] = outcome.failure
    if outcome.facts is not None:
        attributes |= _facts_attributes(outcome.facts)
    return attributes


def _server_attributes(server: tuple[str, int | None] | Any) -> dict[str, AttributeValue]:
    """Where the request came in, unless that is a Unix socket: it has no port (ASGI 2.5)."""
    match server:
        case (str(address), int(port)):
            return {SERVER_ADDRESS: address, SERVER_PORT: port}
        case _:
            return {}


def _facts_attributes(facts: RequestFacts) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        GEN_AI_OPERATION_NAME: "embeddings",
        GEN_AI_PROVIDER_NAME: _SERVICE,
        GEN_AI_RESPONSE_MODEL: facts.model,
        GEN_AI_ENCODING_FORMATS: (facts.encoding_format,),
        "laneway.lane": facts.lane.value,
        "laneway.items": facts.num_items,
    }
    if (computed := facts.computed) is not None:
        attributes |= {
            GEN_AI_DIMENSION: computed.dimension,
            GEN_AI_INPUT_TOKENS: computed.num_tokens,
            "laneway.queue_s": computed.queue_s,
            "laneway.device_s": computed.device_s,
        }
        if computed.num_image_tokens:
            attributes[GEN_AI_IMAGE_TOKENS] = computed.num_image_tokens
    return attributes
