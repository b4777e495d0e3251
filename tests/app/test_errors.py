"""One table from exceptions to answers; the statuses are those that make SDKs do the right thing."""

import logging

import pytest
from litestar.exceptions import ClientException, HTTPException, InternalServerException

from app.answers import ANSWERS, explain, nearest_path, retry_after_headers
from app.engine import EngineNotReadyError
from app.errors import (
    InputFailedError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    quoted,
    shortened,
)
from app.preparation import InputRefusedError, RequestTooLargeError
from batching import (
    DeadlineError,
    EntryFailedError,
    Lane,
    NoRunnersError,
    QueueFullError,
    ShuttingDownError,
    SubmissionTooLargeError,
)
from model import InputError, InputTooLongError, NonFiniteRowError, PassFailedError, TokenIdError
from tests.app.fakes import FakeEngine, Gateway

FULL = QueueFullError(
    Lane.QUERY, what="entries", num_waiting=2048, limit=2048, num_new=1, retry_after_s=1.2345
)

TABLE = [
    (
        InvalidRequestError("No.", param="input[3]", code="invalid_input"),
        (400, "invalid_request_error", "invalid_input", "input[3]", "No."),
    ),
    (
        InputFailedError("input[7]", InputRefusedError(7, InputTooLongError(num_tokens=300, max_tokens=256))),
        (
            400,
            "invalid_request_error",
            "context_length_exceeded",
            "input[7]",
            "This model's maximum context length is 256 tokens, however you requested 300 tokens.",
        ),
    ),
    (
        InputFailedError("input", InputRefusedError(0, TokenIdError(-1, 30522))),
        (
            400,
            "invalid_request_error",
            "invalid_token_id",
            "input",
            "Token id -1 is not in the vocabulary of 30522 ids.",
        ),
    ),
    (
        InputFailedError("input", InputRefusedError(0, InputError("the text has no tokens"))),
        (400, "invalid_request_error", "invalid_input", "input", "The text has no tokens."),
    ),
    (
        RequestTooLargeError(num_tokens=453357, max_tokens=300000),
        (
            400,
            "max_tokens_per_request",
            "max_tokens_per_request",
            None,
            "Requested 453357 tokens, max 300000 tokens per request.",
        ),
    ),
    (
        SubmissionTooLargeError(Lane.QUERY, what="entries", limit=5, num_new=6),
        (
            400,
            "invalid_request_error",
            "request_too_large",
            None,
            "The request brings 6 inputs; the query lane holds at most 5.",
        ),
    ),
    (
        ModelNotFoundError("gpt\n4", ["tiny"]),
        (
            404,
            "invalid_request_error",
            "model_not_found",
            "model",
            "The model 'gpt\\n4' is not served here. Served: tiny.",
        ),
    ),
    (
        DeadlineError(waited_s=0.25),
        (
            408,
            "server_error",
            "deadline_exceeded",
            None,
            "The deadline passed: there was no result after 250 ms.",
        ),
    ),
    (
        FULL,
        (
            429,
            "rate_limit_error",
            "queue_full",
            None,
            "The query lane is full: 2048 inputs are waiting, 2048 are allowed, and the request brings 1; come again in 1.235 seconds.",
        ),
    ),
    (
        InputFailedError("input[2]", EntryFailedError(2, PassFailedError("CUDA error at 0x7f00"))),
        (
            500,
            "server_error",
            None,
            "input[2]",
            "The model failed on this input; the cause is in the server's log.",
        ),
    ),
    (
        InputFailedError("input[2]", EntryFailedError(2, NonFiniteRowError())),
        (
            500,
            "server_error",
            "nonfinite_vector",
            "input[2]",
            "The vector holds NaN or infinity; serving with dtype float32 or bfloat16 avoids that.",
        ),
    ),
    (
        ShuttingDownError(),
        (503, "server_error", "shutting_down", None, "The server is shutting down."),
    ),
    (
        NoRunnersError(2),
        (
            503,
            "server_error",
            "model_failed",
            None,
            "Every worker of the model has ended for good; the cause is in the server's log.",
        ),
    ),
    (
        EngineNotReadyError("downloading 43%"),
        (503, "server_error", "model_loading", None, "The model is not ready: downloading 43%."),
    ),
    (
        EngineNotReadyError("draining"),
        (503, "server_error", "shutting_down", None, "The model is not ready: draining."),
    ),
    (
        EngineNotReadyError("failed"),
        (503, "server_error", "model_failed", None, "The model is not ready: failed."),
    ),
    (
        NonFiniteRowError(),
        (
            500,
            "server_error",
            "nonfinite_vector",
            None,
            "The vector holds NaN or infinity; serving with dtype float32 or bfloat16 avoids that.",
        ),
    ),
    (
        OverloadedError(num_bytes=90, max_bytes=100, waited_s=60),
        (
            503,
            "server_error",
            "overloaded",
            None,
            "Other requests held 90 of the 100 bytes that there are for large bodies (max_held_body_bytes) "
            "for 60 seconds.",
        ),
    ),
    (
        ZeroDivisionError("at 0x7fff in /srv/secret.py"),
        (
            500,
            "server_error",
            None,
            None,
            "The server failed to process the request; the cause is in its log.",
        ),
    ),
    (
        InternalServerException("at 0x7fff"),
        (
            500,
            "server_error",
            None,
            None,
            "The server failed to process the request; the cause is in its log.",
        ),
    ),
    (
        ClientException("Invalid host header"),
        (400, "invalid_request_error", None, None, "Invalid host header."),
    ),
    (
        HTTPException("Payment Required", status_code=402),
        (402, "invalid_request_error", None, None, "Payment Required."),
    ),
]


@pytest.mark.parametrize(("error", "expected"), TABLE, ids=lambda value: type(value).__name__)
def test_every_failure_has_its_answer(
    error: Exception, expected: tuple[int, str, str | None, str | None, str]
):
    explanation = explain(error)
    told = explanation.error
    assert (explanation.status, told.type, told.code, told.param, told.message) == expected


def test_what_would_fail_again_is_not_sent_again():
    """SDKs repeat every 5xx twice: three passes die of a poison input instead of one."""
    for poison in (
        EntryFailedError(0, PassFailedError("")),
        EntryFailedError(0, NonFiniteRowError()),
        NonFiniteRowError(),
        NoRunnersError(1),
        EngineNotReadyError("failed"),
    ):
        assert explain(poison).headers["x-should-retry"] == "false"
    overloaded = OverloadedError(num_bytes=90, max_bytes=100, waited_s=60)
    for passing in (FULL, ShuttingDownError(), overloaded, EngineNotReadyError("loading")):
        assert "x-should-retry" not in explain(passing).headers
        assert 1 <= int(explain(passing).headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [
        (1.2345, "2", "1235"),
        (0.0, "1", "1"),
        (0.05, "1", "50"),
        (3600.0, "60", "60000"),
        (60.0, "60", "60000"),
    ],
)
def test_a_wait_is_told_in_both_spellings_and_bounded(wait_s: float, seconds: str, milliseconds: str):
    """openai-python gives up at once on more than 120 s; the older ones on more than 60."""
    assert retry_after_headers(wait_s) == {"retry-after": seconds, "retry-after-ms": milliseconds}


def test_reasons_are_a_small_closed_set():
    """They are label values: a series each, in every dashboard."""
    assert {answer.reason for answer in ANSWERS.values()} == {
        "cancelled",
        "internal",
        "model_not_found",
        "nonfinite",
        "overloaded",
        "timeout",
        "too_long",
        "unavailable",
        "validation",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a", "'a'"), ("\r\n\x1b[31m", r"'\r\n\x1b[31m'"), ("x" * 10_000, f"'{'x' * 63}…'")],
)
def test_client_text_in_messages_is_short_and_harmless(text: str, shown: str):
    assert quoted(text) == shown


def test_words_around_client_text_are_cut_to_a_length_no_message_outgrows():
    assert shortened("x" * 200) == "x" * 200
    assert shortened("x" * 201) == "x" * 199 + "…"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/api/embeddings/", "/v1/embeddings"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/embed", "/v1/embeddings"),
        ("/openai/models", "/v1/models"),
        ("/helth", "/health"),
        ("/v1/chat/completions", None),
        ("/" + "x" * 100_000, None),
    ],
)
def test_a_wrong_path_is_told_the_right_one(path: str, meant: str | None):
    """The usual mistake is a base URL without /v1, or with two."""
    assert nearest_path(path, ["/", "/health", "/metrics", "/v1/models/{model_id:path}"]) == meant


# Through the application


async def test_a_path_that_is_not_served_is_an_error_like_any_other():
    answer = await Gateway().post("/v1/v1/embeddings", {})
    assert answer.status == 404
    assert (
        answer.error["message"] == "POST '/v1/v1/embeddings' is not served here. Did you mean /v1/embeddings?"
    )
    answer = await Gateway().post("/v1/chat/completions", {})
    assert answer.error["message"] == (
        "POST '/v1/chat/completions' is not served here. See /docs, /ui and GET /v1/models."
    )


async def test_a_wrong_method_is_told_the_right_ones():
    answer = await Gateway().get("/v1/embeddings")
    assert answer.status == 405
    assert answer.error["message"] == "GET is not allowed on '/v1/embeddings'. Allowed: OPTIONS, POST."
    assert set(answer.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
    answer = await Gateway().post("/v1/models", {})
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS", "whatever has a GET answers HEAD, too"


async def test_a_host_header_with_a_path_in_it_is_refused():
    """Frameworks that rebuild the URL from it have let requests past their authentication."""
    answer = await Gateway().get("/health", host="a/health?x=")
    assert (answer.status, answer.error["message"]) == (400, "Invalid host header.")


async def test_an_unknown_file_below_schema_is_in_the_envelope_too():
    assert (await Gateway().get("/schema/nothing.json")).error["type"] == "invalid_request_error"


async def test_our_own_mistake_is_logged_and_not_told(caplog: pytest.LogCaptureFixture):
    """Exception texts hold addresses and paths (CVE-2026-22778 began with one)."""
    gateway = Gateway(FakeEngine(failure=RuntimeError("secret at 0x7f0011")))

    answer = await gateway.embed("a")

    assert answer.status == 500
    assert b"0x7f" not in answer.body
    assert b"secret" not in answer.body
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.getMessage() == "POST /v1/embeddings failed"
    assert record.exc_info is not None
    assert gateway.sample("laneway_request_failures_total", reason="internal") == 1


async def test_failures_of_one_input_carry_the_clients_name_for_it():
    failure = InputRefusedError(1, InputTooLongError(num_tokens=30, max_tokens=16))
    gateway = Gateway(FakeEngine(failure=failure))

    assert (await gateway.embed(["a", "b"])).error["param"] == "input[1]"
    assert (await gateway.post("/embeddings/text", {"texts": ["a", "b"]})).error["param"] == "texts[1]"
    assert gateway.sample("laneway_request_failures_total", reason="too_long") == 2


async def test_a_full_lane_says_when_to_come_back():
    answer = await Gateway(FakeEngine(failure=FULL)).embed("a")
    assert answer.status == 429
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1235")


async def test_a_full_lane_tells_its_bounds():
    """They are what a client that was refused needs most."""
    answer = await Gateway(FakeEngine(failure=FULL)).embed("a")
    assert answer.headers["x-ratelimit-limit-requests"] == "2048"
    assert {name for name in answer.headers if name.startswith("x-ratelimit-")} == {
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    }
