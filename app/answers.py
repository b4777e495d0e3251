"""The one table from exceptions to HTTP answers, and the envelope around every failure.

Two laws. Whatever fails, on whatever route, is answered as ``{"error": {message, type, param, code}}``.
Statuses are chosen by what the SDKs do with them: they retry 408, 409, 429 and every 5xx (openai-python
3.54), so a request that cannot succeed is never answered with one of these without ``x-should-retry: false``.
"""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, NotFoundException
from litestar.openapi.datastructures import ResponseSpec

from app.engine import DRAINING, FAILED, EngineNotReadyError
from app.errors import (
    BodyEncodingError,
    ClientGoneError,
    ImageQueueFullError,
    InputFailedError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    quoted,
)
from app.facts import known_method
from app.logs import fields
from app.preparation import InputRefusedError, RequestTooLargeError
from app.services import services_of
from app.serving import rate_limit_headers
from app.wire import Error, ErrorResponse
from batching import (
    DeadlineError,
    EntryFailedError,
    NoRunnersError,
    QueueFullError,
    ShuttingDownError,
    SubmissionTooLargeError,
)
from model import (
    DecodeFailedError,
    DecoderUnavailableError,
    ImageError,
    ImageMemoryError,
    ImageTimeoutError,
    ImageTooLargeError,
    InputTooLongError,
    NonFiniteRowError,
    TokenIdError,
    WorkerError,
)

logger = logging.getLogger(__name__)

# The table -------------------------------------------------------------------------------------------------

INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a failure is told: to the client, and to the failure counter."""

    status: int
    type: str
    code: str | None
    reason: str
    """Label of ``laneway_request_failures_total``; a closed set."""
    message: str | None = None
    """Instead of the exception's own text, where that is not for clients."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


NO_RETRY = {"x-should-retry": "false"}
_NO_RUNNERS = "Every worker of the model has ended for good; the cause is in the server's log."
_SERVER_FAULT = "The server failed to process the request; the cause is in its log."

ANSWERS: dict[type[Exception], Answer] = {
    InvalidRequestError: Answer(status=400, type=INVALID, code=None, reason="validation"),
    InputTooLongError: Answer(status=400, type=INVALID, code="context_length_exceeded", reason="too_long"),
    TokenIdError: Answer(status=400, type=INVALID, code="invalid_token_id", reason="validation"),
    InputRefusedError: Answer(status=400, type=INVALID, code="invalid_input", reason="validation"),
    ImageError: Answer(status=400, type=INVALID, code="invalid_image", reason="validation"),
    ImageTooLargeError: Answer(status=400, type=INVALID, code="image_too_large", reason="too_long"),
    ImageMemoryError: Answer(status=400, type=INVALID, code="image_too_large", reason="too_long"),
    # Not 408: the SDKs would have it decoded twice more, to the same end.
    ImageTimeoutError: Answer(status=400, type=INVALID, code="image_timeout", reason="timeout"),
    RequestTooLargeError: Answer(
        status=400, type="max_tokens_per_request", code="max_tokens_per_request", reason="too_long"
    ),
    # Not 429: the lane could never hold it, and a retry would never succeed.
    SubmissionTooLargeError: Answer(status=400, type=INVALID, code="request_too_large", reason="too_long"),
    ModelNotFoundError: Answer(status=404, type=INVALID, code="model_not_found", reason="model_not_found"),
    DeadlineError: Answer(status=408, type=SERVER, code="deadline_exceeded", reason="timeout"),
    BodyEncodingError: Answer(status=415, type=INVALID, code="unsupported_encoding", reason="validation"),
    QueueFullError: Answer(status=429, type="rate_limit_error", code="queue_full", reason="overloaded"),
    ImageQueueFullError: Answer(status=429, type="rate_limit_error", code="queue_full", reason="overloaded"),
    # 499 is nginx's: nobody reads this answer, but the access log and the metrics tell it from a timeout.
    ClientGoneError: Answer(status=499, type=INVALID, code="client_closed", reason="cancelled"),
    # The same input would fail again, so the SDKs are told not to send it twice more.
    NonFiniteRowError: Answer(
        status=500, type=SERVER, code="nonfinite_vector", reason="nonfinite", headers=NO_RETRY
    ),
    # A mistake of ours, or a file that kills what decodes it: the next try would end like this one.
    DecodeFailedError: Answer(
        status=500, type=SERVER, code="image_decode_failed", reason="internal", headers=NO_RETRY
    ),
    EntryFailedError: Answer(
        status=500,
        type=SERVER,
        code=None,
        reason="internal",
        message="The model failed on this input; the cause is in the server's log.",
        headers=NO_RETRY,
    ),
    OverloadedError: Answer(
        status=503, type=SERVER, code="overloaded", reason="overloaded", headers={"retry-after": "1"}
    ),
    ShuttingDownError: Answer(
        status=503, type=SERVER, code="shutting_down", reason="unavailable", headers={"retry-after": "2"}
    ),
    NoRunnersError: Answer(
        status=503,
        type=SERVER,
        code="model_failed",
        reason="unavailable",
        message=_NO_RUNNERS,
        headers=NO_RETRY,
    ),
    DecoderUnavailableError: Answer(
        status=503,
        type=SERVER,
        code="image_decoder_unavailable",
        reason="unavailable",
        message="Images cannot be decoded at this moment; the cause is in the server's log.",
        headers={"retry-after": "2"},
    ),
    EngineNotReadyError: Answer(
        status=503, type=SERVER, code="model_loading", reason="unavailable", headers={"retry-after": "5"}
    ),
    Exception: Answer(status=500, type=SERVER, code=None, reason="internal", message=_SERVER_FAULT),
}

_NOT_READY = ANSWERS[EngineNotReadyError]
STAGE_ANSWERS: dict[str, Answer] = {
    DRAINING: ANSWERS[ShuttingDownError],
    FAILED: replace(_NOT_READY, code="model_failed", headers=NO_RETRY),
}
"""Why an engine is not ready; every other stage is a stage of loading."""

MAX_RETRY_AFTER_S = 60.0
"""A longer ``Retry-After`` makes older SDKs give up (the bound of openai-python before 3.0; 120 s since)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One failure, ready to be sent."""

    status: int
    error: Error
    reason: str
    headers: Mapping[str, str]


def explain(error: Exception) -> Explanation:
    """Find the answer to an exception: its own class, or the nearest one above it in the table."""
    failure = error.failure if isinstance(error, InputFailedError) else error
    answer = _specific(failure) or _nearest(failure)
    code = failure.code if isinstance(failure, InvalidRequestError) else None
    return Explanation(
        status=answer.status,
        error=Error(
            message=sentence(answer.message if answer.message is not None else str(failure)),
            type=answer.type,
            param=error.param if isinstance(error, RequestError) else None,
            code=code or answer.code,
        ),
        reason=answer.reason,
        headers=answer.headers,
    )


def sentence(text: str) -> str:
    """An exception's text as clients read it: a capital first and a full stop last."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _nearest(error: Exception) -> Answer:
    return next(ANSWERS[cls] for cls in type(error).__mro__ if cls in ANSWERS)


def _specific(error: Exception) -> Answer | None:
    """The answer of an exception whose values decide it, not its class alone."""
    match error:
        case (
            InputRefusedError(__cause__=Exception() as cause)
            | EntryFailedError(__cause__=Exception() as cause)
        ):
            answer = ANSWERS.get(type(cause))
            return answer and replace(answer, message=str(cause))
        case QueueFullError():
            headers = retry_after_headers(error.retry_after_s)
            message = f"{_in_client_words(error)}; come again in {told_wait_s(error.retry_after_s):g} seconds"
            return replace(_nearest(error), message=message, headers=headers)
        case ImageQueueFullError():
            return replace(_nearest(error), headers=retry_after_headers(error.retry_after_s))
        case SubmissionTooLargeError():
            return replace(_nearest(error), message=_in_client_words(error))
        case EngineNotReadyError():
            return STAGE_ANSWERS.get(error.stage)
        case HTTPException():
            return _framework_answer(error)
        case _:
            return None


def _in_client_words(error: Exception) -> str:
    """What waits in a lane is an entry there; whoever sent it calls it an input."""
    return str(error).replace("entries", "inputs")


def retry_after_headers(wait_s: float) -> dict[str, str]:
    """The wait in both spellings, whole seconds (RFC 9110, 10.2.3) and the milliseconds the SDKs prefer."""
    told_s = told_wait_s(wait_s)
    return {"retry-after": str(math.ceil(told_s)), "retry-after-ms": str(round(told_s * 1000))}


def told_wait_s(wait_s: float) -> float:
    """A wait as clients are told it: whole milliseconds, never too short, and never too long for an SDK."""
    return min(max(1, math.ceil(wait_s * 1000)), MAX_RETRY_AFTER_S * 1000) / 1000


def _framework_answer(error: HTTPException) -> Answer:
    """What Litestar raised itself: no route, wrong method, too large, a bad Host header."""
    if error.status_code >= 500:
        return ANSWERS[Exception]
    return Answer(
        status=error.status_code,
        type=INVALID,
        code="payload_too_large" if error.status_code == 413 else None,
        reason={404: "not_found", 405: "not_found", 413: "too_long"}.get(error.status_code, "validation"),
        # str() of an HTTPException begins with its status; the detail does not.
        message=error.detail,
        headers=error.headers or {},
    )


# The document ----------------------------------------------------------------------------------------------

DESCRIPTIONS: dict[int, str] = {
    400: "The request is wrong; `param` says where.",
    404: "The model is not served here.",
    408: "The deadline passed before there was a result.",
    413: "The body is larger than `max_body_bytes`.",
    415: "The body is compressed.",
    429: "The lane is full; `retry-after-ms` says when to come back.",
    500: "The server failed.",
    503: "The model is loading, or the server is overloaded or stopping.",
}
"""What each failure means, for the OpenAPI document."""

BODY_FAILURES = (400, 408, 413, 415, 429, 500, 503)
"""What every endpoint that embeds the inputs of a body may answer."""


def failure_responses(*statuses: int) -> dict[int, ResponseSpec]:
    """How the OpenAPI document describes failures: all in the one envelope."""
    return {
        status: ResponseSpec(ErrorResponse, description=DESCRIPTIONS[status], generate_examples=False)
        for status in statuses
    }


# The handler -----------------------------------------------------------------------------------------------


FAILURE_REASON = "laneway.failure_reason"
"""Key in the ASGI scope: why the request failed, for whoever counts it (``app.observe``)."""
FAILURE_CODE = "laneway.failure_code"
"""Key in the ASGI scope: the code that its client was told, if there is one for it."""


def answer_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer any exception of any route in the envelope, and log what is our own fault."""
    explanation = explain(_with_advice(request, error))
    scope = cast("dict[str, Any]", request.scope)
    scope[FAILURE_REASON] = explanation.reason
    scope[FAILURE_CODE] = explanation.error.code
    headers = dict(explanation.headers)
    if isinstance(error, QueueFullError | ImageQueueFullError):
        headers |= rate_limit_headers(services_of(request), error.lane, waited_s=error.retry_after_s)
    if explanation.status == 500:
        # The traceback stays here: its text may hold addresses, paths, or a client's input.
        route = scope.get("path_template", "an unknown path")
        told = numbers_of_pass(error)
        logger.error(
            "%s %s failed%s",
            known_method(request.method),
            route,
            ": worker[{worker_pid}] pass {pass}".format_map(told) if told else "",
            exc_info=error,
            extra=fields(**told),
        )
    return Response(
        msgspec.json.encode(ErrorResponse(explanation.error)),
        status_code=explanation.status,
        media_type="application/json",
        headers=headers,
    )


def numbers_of_pass(error: BaseException | None) -> dict[str, object]:
    """The worker process and the pass that a request failed over, as they stand on the worker's own line.

    Several passes may have failed: it is the last one, which held the failing input alone. Empty where no
    pass failed.
    """
    while error is not None:
        if isinstance(error, WorkerError) and error.pass_id is not None:
            return {"worker_pid": error.pid, "pass": error.pass_id}
        error = error.__cause__
    return {}


def _with_advice(request: Request[Any, Any, Any], error: Exception) -> Exception:
    """Say what the framework's own errors leave out: which path, method or limit would have been right."""
    if not isinstance(error, HTTPException) or error.status_code not in ADVICE:
        return error
    detail = ADVICE[error.status_code](request, error)
    headers = error.headers
    if error.status_code == 405:
        headers = {**(headers or {}), "allow": ", ".join(_allowed_methods(error))}
    return HTTPException(detail=detail, status_code=error.status_code, headers=headers)


def _allowed_methods(error: HTTPException) -> list[str]:
    """The methods that a path takes. The outer layer answers HEAD wherever there is a GET."""
    methods = set((error.headers or {}).get("allow", "").split(", "))
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def not_found_advice(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Name the path that was probably meant: a base URL often lacks its ``/v1``, or has two."""
    path: str = request.scope["path"]
    message = f"{request.method} {quoted(path)} is not served here."
    meant = nearest_path(path, [route.path for route in request.app.routes])
    return f"{message} Did you mean {meant}?" if meant else f"{message} See /docs, /ui and GET /v1/models."


def nearest_path(path: str, served: Sequence[str]) -> str | None:
    """The served path that a wrong one was probably meant to be."""
    last = path.rstrip("/").rpartition("/")[2]
    if last in ("embeddings", "embedding", "embed"):
        return "/v1/embeddings"
    if last in ("models", "model"):
        return "/v1/models"
    plain = [one for one in served if "{" not in one]
    return next(iter(difflib.get_close_matches(path[:256], plain, n=1, cutoff=0.75)), None)


def wrong_method_advice(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Name the methods that the path takes."""
    allowed = ", ".join(_allowed_methods(error))
    return f"{request.method} is not allowed on {quoted(request.scope['path'])}. Allowed: {allowed}."


def too_large_advice(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Name the limit and the setting that raises it."""
    limit = services_of(request).settings.server.max_body_bytes
    return f"The request body is larger than {limit} bytes, the limit set by max_body_bytes."


ADVICE = {404: not_found_advice, 405: wrong_method_advice, 413: too_large_advice}


def refuse_unknown_schema_file(response: Response[Any]) -> Response[Any]:
    """Hook: turns Litestar's page for unknown paths below ``/schema`` into an error like any other.

    Raises:
        NotFoundException: There is no such file.
    """
    if response.status_code == 404:
        raise NotFoundException
    return response
