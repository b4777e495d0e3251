"""One plain ASGI layer around the whole application: request ids, log, counts, traces, HEAD, last resort.

Litestar runs its middleware per route, so a 404 or a 405 never meets it; this layer meets everything. Laws:
every response leaves with an ``x-request-id``; every request is counted once and logged once, and so is every
failure, whoever answered it; neither the line nor the label holds anything that a client made up (the route
is the template, never the path).
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from app.answers import FAILURE_CODE, FAILURE_REASON, explain
from app.errors import BodyEncodingError
from app.facts import QUIET_ROUTES, RequestFacts, Stage, facts_of, known_method, stages_var
from app.logs import fields, request_id_var, trace_id_var
from app.wire import ErrorResponse
from batching import Lane, ShuttingDownError

logger = logging.getLogger(__name__)

# ASGI as its specification has it; Litestar's and uvicorn's types name the same dictionaries differently.
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

REQUEST_ID_HEADER = b"x-request-id"
# Keys in the ASGI scope, which we share with the server below us.
REQUEST_ID = "laneway.request_id"
REFUSAL = "laneway.refusal"
"""Set by the connection where it answered in the application's place, to which the client just left."""
_ALLOWED_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
UNMATCHED_ROUTE = "unmatched"
CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that left before its answer. Nobody receives it; it is counted and logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request got no further than the connection it came on."""

    status: int
    message: str
    code: str
    reason: str
    """For the failure counter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request, as it is counted, logged and traced."""

    route: str
    method: str
    status: int
    duration_s: float
    failure: str | None
    """Why it got an error in place of its answer, from a closed set."""
    code: str | None
    """The code that its client was told."""
    facts: RequestFacts | None = None
    encode_s: float | None = None
    """From its vectors to the head of its answer; ``None``: it came to neither."""


class HttpObserver(Protocol):
    """Who counts requests."""

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
        """One request was answered, or given up by its client.

        Args:
            route: The path template, or ``UNMATCHED_ROUTE``.
            method: One that there is, or ``other``.
            status: As it was sent, or ``CLIENT_CLOSED_REQUEST``.
            duration_s: From its head to the last byte of its answer.
            failure: Why it got an error in place of its answer; ``None``: it got none.
            lane: Where its inputs were embedded; ``None``: it had none, or was not understood.
        """
        ...

    def observe_stage(self, stage: str, duration_s: float, *, lane: Lane) -> None:
        """A request of the lane spent so long on a part of its way."""
        ...


class Trace(Protocol):
    """One request that is traced."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        ...

    def end(self, outcome: Outcome, stages: Sequence[Stage]) -> None:
        """The request is over; ``stages`` are those that were noted on the way."""
        ...


class Tracer(Protocol):
    """Who traces requests."""

    def begin(self, scope: Scope) -> Trace | None:
        """A request has come; ``None``: it is not traced."""
        ...


class ObservedApp:
    """The application with its outermost layer."""

    def __init__(
        self,
        app: ASGIApp,
        observer: HttpObserver,
        *,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Lay the layer around an application.

        Args:
            app: The application.
            observer: Counts requests.
            tracer: Traces requests; ``None``: nobody does.
            clock: Monotonic seconds.
        """
        self._app = app
        self._observer = observer
        self._tracer = tracer
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection; lifespan passes through untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._app, scope, receive, send, self._clock)
        token = request_id_var.set(exchange.request_id)
        try:
            trace = None if self._tracer is None else self._tracer.begin(scope)
            if trace is None:
                await self._run(exchange)
            else:
                await self._run_traced(exchange, trace)
        finally:
            request_id_var.reset(token)

    async def _run(self, exchange: "_Exchange") -> None:
        try:
            await exchange.run()
        finally:
            record(self._observer, exchange.outcome())

    async def _run_traced(self, exchange: "_Exchange", trace: Trace) -> None:
        stages: list[Stage] = []
        stages_token, trace_token = stages_var.set(stages), trace_id_var.set(trace.trace_id)
        try:
            await exchange.run()
        finally:
            outcome = exchange.outcome()
            record(self._observer, outcome)
            trace.end(outcome, stages)
            trace_id_var.reset(trace_token)
            stages_var.reset(stages_token)


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, clock: Callable[[], float]
    ) -> None:
        self._app = app
        self._scope = scope
        # RFC 9110, 9.3.2: HEAD is GET without the body, so the application need not know of it. A copy,
        # because the server below us reads the method, too.
        self._app_scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        self._receive = receive
        self._send = send
        self._clock = clock
        self._started_s = clock()
        self._client_left = False
        self._sent_status: int | None = None
        self._is_complete = False
        self._encode_s: float | None = None
        self.request_id = self._app_scope[REQUEST_ID] = request_id_of(scope)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._started_s

    @property
    def route(self) -> str:
        return route_of(self._app_scope)

    def outcome(self) -> Outcome:
        """What became of it, as far as it has come."""
        refusal = self.refusal
        return Outcome(
            route=self.route,
            method=known_method(self._scope["method"]),
            status=self.status,
            duration_s=self.elapsed_s,
            failure=self.failure,
            code=self._app_scope.get(FAILURE_CODE) if refusal is None else refusal.code,
            facts=facts_of(self._app_scope),
            encode_s=self._encode_s,
        )

    @property
    def status(self) -> int:
        if self.refusal is not None:
            return self.refusal.status
        if self._sent_status is None:
            return CLIENT_CLOSED_REQUEST if self._client_left else 500
        return self._sent_status

    @property
    def failure(self) -> str | None:
        if self.refusal is not None:
            return self.refusal.reason
        if self.status == CLIENT_CLOSED_REQUEST:
            return "cancelled"
        return self._app_scope.get(FAILURE_REASON)

    @property
    def refusal(self) -> Refusal | None:
        return self._scope.get(REFUSAL)

    async def run(self) -> None:
        encoding = _header(self._scope, b"content-encoding")
        if encoding is not None and encoding.strip().lower() not in (b"", b"identity"):
            await self._answer(
                BodyEncodingError(encoding.decode("latin-1")), (b"accept-encoding", b"identity")
            )
            return
        try:
            await self._app(self._app_scope, self.receive, self.send)
        except asyncio.CancelledError:
            # Only the server cancels us, when the time for finishing at shutdown is over. The task is
            # about to end either way; ended normally, its client gets an answer that it may retry.
            if self._sent_status is not None or self._client_left:
                raise
            await self._answer(ShuttingDownError(), (b"connection", b"close"))
        except Exception as error:
            logger.exception("%s %s failed", known_method(self._scope["method"]), self.route)
            if self._sent_status is not None:
                self._app_scope[FAILURE_REASON] = explain(error).reason
                raise  # half an answer is out: the server has to break the connection
            await self._answer(error)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # What is sent to a client that left is dropped by the server.
            self._sent_status = CLIENT_CLOSED_REQUEST if self._client_left else message["status"]
            facts = facts_of(self._app_scope)
            if facts is not None and facts.computed is not None:
                self._encode_s = time.monotonic() - facts.computed.ended_s
            headers = [pair for pair in message["headers"] if pair[0].lower() != REQUEST_ID_HEADER]
            headers.append((REQUEST_ID_HEADER, self.request_id.encode()))
            headers.append((b"openai-processing-ms", str(round(self.elapsed_s * 1000)).encode()))
            await self._send({**message, "headers": headers})
            return
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
        if self._scope["method"] == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    async def _answer(self, error: Exception, *headers: tuple[bytes, bytes]) -> None:
        explanation = explain(error)
        self._app_scope[FAILURE_REASON] = explanation.reason
        self._app_scope[FAILURE_CODE] = explanation.error.code
        body = msgspec.json.encode(ErrorResponse(explanation.error))
        own = [(name.encode(), value.encode()) for name, value in explanation.headers.items()]
        await self.send(
            {
                "type": "http.response.start",
                "status": explanation.status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(body)).encode()),
                    *own,
                    *headers,
                ],
            }
        )
        await self.send({"type": "http.response.body", "body": body, "more_body": False})


def record(observer: HttpObserver, outcome: Outcome) -> None:
    """Count one request, and write its line; one that failed is told by its code."""
    lane = None if outcome.facts is None else outcome.facts.lane
    observer.observe_http(
        outcome.route,
        outcome.method,
        outcome.status,
        outcome.duration_s,
        failure=outcome.failure,
        lane=lane,
    )
    if lane is not None and outcome.encode_s is not None:
        observer.observe_stage("encode", outcome.encode_s, lane=lane)
    level = logging.DEBUG if outcome.route in QUIET_ROUTES else logging.INFO
    if not logger.isEnabledFor(level):
        return
    logger.log(
        level,
        "%s %s %d %.1f ms%s",
        outcome.method,
        outcome.route,
        outcome.status,
        outcome.duration_s * 1000,
        f" {outcome.code}" if outcome.code else "",
        extra=fields(**_told(outcome)),
    )


def _told(outcome: Outcome) -> dict[str, object]:
    """What the line of a request tells machines. All times are milliseconds."""
    told: dict[str, object] = {
        "method": outcome.method,
        "route": outcome.route,
        "status": outcome.status,
        "duration_ms": round(outcome.duration_s * 1000, 1),
    }
    if outcome.facts is not None:
        told |= {
            "lane": outcome.facts.lane.value,
            "model": outcome.facts.model,
            "items": outcome.facts.num_items,
        }
        if (computed := outcome.facts.computed) is not None:
            told |= {
                "tokens": computed.num_tokens,
                "queue_ms": round(computed.queue_s * 1000, 1),
                "worker_ms": round(max(0.0, computed.worker_wait_s) * 1000, 1),
                "device_ms": round(computed.device_s * 1000, 1),
            }
    if outcome.failure is not None:
        told["reason"] = outcome.failure
    if outcome.code is not None:
        told["code"] = outcome.code
    return told


def request_id_of(scope: Scope) -> str:
    """The id of a request, chosen when it is first asked for: by the connection or by the layer above it."""
    if REQUEST_ID not in scope:
        scope[REQUEST_ID] = choose_request_id(_header(scope, REQUEST_ID_HEADER))
    return scope[REQUEST_ID]


def choose_request_id(offered: bytes | None) -> str:
    """The client's own id where it is harmless in headers and logs, else a new one."""
    if offered is not None and _ALLOWED_REQUEST_ID.fullmatch(offered):
        return offered.decode()
    return f"req_{secrets.token_hex(12)}"


def route_of(scope: Mapping[str, Any]) -> str:
    """The path template of the handler that Litestar chose; ``unmatched`` where there was none."""
    # Litestar writes it into the scope that it shares with us, on a match only.
    return scope.get("path_template") or UNMATCHED_ROUTE


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
