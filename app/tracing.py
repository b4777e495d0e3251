"""Whether requests are traced, and where the parts of a request's time lie.

OpenTelemetry is an extra: nothing here imports it before it is known that somebody asked for traces. What
talks to it is ``app.spans``. Asked for in no way, tracing costs one comparison a request.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from app.facts import RequestFacts, Stage

if TYPE_CHECKING:
    from app.spans import SpanTracer

# https://opentelemetry.io/docs/specs/otel/protocol/exporter/ and .../configuration/sdk-environment-variables/
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class TracingError(Exception):
    """Traces are asked for and cannot be had. The message is one line that says what to do."""


def who_asks(otlp_endpoint: str | None, environment: Mapping[str, str]) -> str | None:
    """The setting or the variable that asks for traces; ``None``: nothing does.

    Args:
        otlp_endpoint: The setting.
        environment: As OpenTelemetry reads it; a variable that is empty is not set.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if otlp_endpoint is not None:
        return "otlp_endpoint"
    if environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    return next((name for name in _ENDPOINT_VARIABLES if environment.get(name)), None)


def open_tracer(otlp_endpoint: str | None, *, version: str) -> "SpanTracer | None":
    """What traces requests, if that is asked for; to be closed at the end.

    Args:
        otlp_endpoint: The collector's URL, without the path of traces. ``None``: what the environment says.
        version: The version of the program.

    Raises:
        TracingError: It is asked for, but the extra is not installed, or in a protocol that we do not speak.
    """
    asker = who_asks(otlp_endpoint, os.environ)
    if asker is None:
        return None
    # The variable of traces takes precedence over the one of all signals.
    name = next((name for name in _PROTOCOL_VARIABLES if os.environ.get(name)), None)
    if name is not None and os.environ[name] != _PROTOCOL:
        raise TracingError(f"{name} is {os.environ[name]}, but traces are sent as {_PROTOCOL} only")
    try:
        from app.spans import SpanTracer, otlp_exporter
    except ModuleNotFoundError as error:
        raise TracingError(
            f"{asker} asks for traces, but {error.name} is not installed; "
            "install Laneway with its extra otel: pip install 'laneway[otel]'"
        ) from error
    return SpanTracer.exporting(otlp_exporter(otlp_endpoint), version=version)


def stages_of(facts: RequestFacts | None, noted: Sequence[Stage], *, encode_s: float | None) -> list[Stage]:
    """Where the parts of a request's time lie, in order.

    Images were noted as they went. The rest follows from durations: preparing begins where they ended, an
    input waits for its pass from there, the pass at its worker for the one before it, and the device was at
    work until the rows were there. With several passes these last three overlap.

    Args:
        facts: What is known of the request, if it was understood.
        noted: Stages that were noted on the way.
        encode_s: From its vectors to the head of its answer; ``None``: it came to neither.
    """
    if facts is None or facts.computed is None:
        return list(noted)
    computed = facts.computed
    begun_s = max((stage.ended_s for stage in noted), default=facts.began_s)
    prepared_s = min(begun_s + computed.prepare_s, computed.ended_s)
    queued_s = min(prepared_s + computed.queue_s, computed.ended_s)
    waited_s = min(queued_s + computed.worker_wait_s, computed.ended_s)
    # Passes of several workers at once have more device time than there was time.
    device_s = min(computed.device_s, computed.ended_s - prepared_s)
    return [
        *noted,
        Stage(name="prepare", began_s=begun_s, ended_s=prepared_s),
        Stage(name="queue", began_s=prepared_s, ended_s=queued_s),
        Stage(name="worker", began_s=queued_s, ended_s=waited_s),
        Stage(name="device", began_s=computed.ended_s - device_s, ended_s=computed.ended_s),
        Stage(name="encode", began_s=computed.ended_s, ended_s=computed.ended_s + (encode_s or 0.0)),
    ]
