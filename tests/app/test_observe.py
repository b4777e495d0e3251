"""The outer layer, driven as plain ASGI, around a small Litestar application."""

import io
import json
import logging
from collections.abc import Generator
from typing import Any

import pytest
from litestar import Litestar, Response, get, post
from litestar.params import FromPath

from app.engine import Engine
from app.facts import QUIET_ROUTES
from app.logs import (
    JsonFormatter,
    TextFormatter,
    fields,
    format_exception,
    logs_as_json,
    request_id_var,
)
from app.observe import ObservedApp, choose_request_id
from app.routes import live, operations
from app.settings import LogFormat
from model.worker import LoadOptions
from tests.app.fakes import with_settings
from tests.app.running import Recorder

SECRET = "the client's own words"


@get("/items/{number:int}", sync_to_thread=False)
def item(number: FromPath[int]) -> dict[str, int]:
    return {"number": number}


@get("/health/live", sync_to_thread=False)
def health() -> str:
    return "ok"


@post("/broken", sync_to_thread=False)
def broken() -> None:
    raise ValueError(SECRET)


def application() -> Litestar:
    def on_error(_: Any, error: Exception) -> Response[str]:
        status = getattr(error, "status_code", None)
        if status is None:
            raise error  # escapes Litestar, as a bug in the error handler itself would
        return Response("", status_code=status)

    return Litestar(
        [item, health, broken],
        exception_handlers={Exception: on_error},
        openapi_config=None,
        logging_config=None,
    )


class Exchange:
    """One request through the layer, with everything that came out of it."""

    def __init__(self, app: Any = None, *, clock: Any = None) -> None:
        self.recorder = Recorder()
        self.app = ObservedApp(app or application(), self.recorder, **({"clock": clock} if clock else {}))
        self.sent: list[dict[str, Any]] = []

    async def run(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, leaves: bool = False
    ) -> "Exchange":
        messages = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
        if leaves:
            messages.pop(0)
        incoming = iter(messages)

        async def receive() -> dict[str, Any]:
            return next(incoming)

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(b"host", b"here"), *raw], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        }  # fmt: skip
        await self.app(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.sent[1]["body"])["error"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Generator[io.StringIO]:
    """What an operator would read, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(lambda record: setattr(record, "request_id", request_id_var.get()) or True)
    logger = logging.getLogger("app")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


# Request ids -----------------------------------------------------------------------------------------------


async def test_the_clients_request_id_comes_back():
    exchange = await Exchange().run("GET", "/items/7", {"X-Request-Id": "trace-1.a_B"})
    assert exchange.recorder.failures == [None]
    assert (exchange.status, exchange.headers["x-request-id"]) == (200, "trace-1.a_B")


@pytest.mark.parametrize("offered", ["", "a b", "../../etc", "a\nb", "x" * 129, "é", '"'], ids=repr)
async def test_a_request_id_that_could_do_harm_is_replaced(offered: str):
    """It is written to headers and logs: no spaces, no line ends, no quotes, no novels."""
    exchange = await Exchange().run("GET", "/items/7", {"X-Request-Id": offered})
    made = exchange.headers["x-request-id"]
    assert made.startswith("req_")
    assert len(made) == 28


def test_made_request_ids_differ():
    assert len({choose_request_id(None) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/items/7", 405), ("POST", "/broken", 500)],
)
async def test_failures_have_a_request_id_too(method: str, path: str, status: int):
    """Litestar's own middleware is not called for 404 and 405."""
    exchange = await Exchange().run(method, path, {"X-Request-Id": "mine"})
    assert (exchange.status, exchange.headers["x-request-id"]) == (status, "mine")


async def test_every_answer_says_how_long_it_took():
    """The SDKs' users know the header from OpenAI."""
    times = iter([10.0, 10.0421, 10.05])
    exchange = await Exchange(clock=lambda: next(times)).run("GET", "/items/7")
    assert exchange.headers["openai-processing-ms"] == "42"


# Counting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "counted"),
    [
        ("GET", "/items/7", ("/items/{number}", "GET", 200)),
        ("GET", "/items/seven", ("unmatched", "GET", 404)),
        ("GET", "/nowhere/" + "x" * 100, ("unmatched", "GET", 404)),
        ("DELETE", "/items/7", ("unmatched", "DELETE", 405)),
        ("PROPFIND", "/items/7", ("unmatched", "other", 405)),
        ("POST", "/broken", ("/broken", "POST", 500)),
    ],
)
async def test_a_request_is_counted_once_by_its_template(
    method: str, path: str, counted: tuple[str, str, int]
):
    """A label that clients can choose lets any of them fill the memory of the metrics' reader."""
    exchange = await Exchange().run(method, path)
    assert exchange.recorder.seen == [counted]


async def test_a_client_that_left_counts_as_499():
    async def patient(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"

    exchange = await Exchange(patient).run("POST", "/anything", leaves=True)
    assert exchange.sent == []
    assert exchange.recorder.seen == [("unmatched", "POST", 499)]
    assert exchange.recorder.failures == ["cancelled"]


async def test_what_is_sent_to_a_client_that_left_counts_as_499():
    """The server drops it; a 200 in the log would claim that it arrived."""

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    exchange = await Exchange(stubborn).run("POST", "/anything", leaves=True)
    assert exchange.recorder.seen == [("unmatched", "POST", 499)]


async def test_a_client_that_leaves_after_its_answer_has_had_it():
    async def watching(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        assert (await receive())["type"] == "http.disconnect"

    exchange = await Exchange(watching).run("POST", "/anything")
    assert exchange.recorder.seen == [("unmatched", "POST", 200)]


# Compressed bodies and bugs --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity", "x" * 500])
async def test_a_compressed_body_is_refused_before_anyone_unpacks_it(encoding: str):
    exchange = await Exchange().run("POST", "/broken", {"Content-Encoding": encoding})
    assert exchange.status == 415
    assert exchange.error["code"] == "unsupported_encoding"
    assert exchange.error["message"].startswith("Content-Encoding '")
    assert len(exchange.error["message"]) < 200
    # RFC 9110, 15.5.16: a 415 for the coding says which ones are taken.
    assert exchange.headers["accept-encoding"] == "identity"
    assert exchange.recorder.seen == [("unmatched", "POST", 415)]
    assert exchange.recorder.failures == ["validation"]


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
async def test_a_body_that_says_it_is_not_compressed_is_taken(encoding: str):
    assert (await Exchange().run("GET", "/items/7", {"Content-Encoding": encoding})).status == 200


async def test_a_bug_is_answered_in_the_envelope_and_does_not_tell_its_text():
    exchange = await Exchange().run("POST", "/broken")
    assert exchange.status == 500
    assert exchange.error == {
        "message": "The server failed to process the request; the cause is in its log.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert exchange.recorder.failures == ["internal"]


async def test_a_bug_after_the_first_byte_is_left_to_the_server():
    """Half an answer cannot be made whole; only a broken connection tells the client so."""

    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    exchange = Exchange(half)
    with pytest.raises(ZeroDivisionError):
        await exchange.run("GET", "/")
    assert len(exchange.sent) == 1
    assert exchange.recorder.failures == ["internal"]


# The log ---------------------------------------------------------------------------------------------------


async def test_a_request_is_one_line(log: io.StringIO):
    times = iter([10.0, 10.001, 10.0125])
    await Exchange(clock=lambda: next(times)).run(
        "GET", "/items/7", {"X-Request-Id": "mine", "Authorization": "Bearer k"}
    )
    (line,) = lines(log)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "app.observe",
        "message": "GET /items/{number} 200 12.5 ms",
        "request_id": "mine",
        "method": "GET",
        "route": "/items/{number}",
        "status": 200,
        "duration_ms": 12.5,
    }


async def test_health_checks_do_not_fill_the_log(log: io.StringIO):
    await Exchange().run("GET", "/health/live")
    assert [line["level"] for line in lines(log)] == ["debug"]


def test_every_path_of_a_probe_is_quiet():
    """A path that is added to one of these handlers is asked for as often."""
    handlers = (operations.live, operations.ready, operations.metrics, live.read_live)
    assert {path for handler in handlers for path in handler.paths} == QUIET_ROUTES


async def test_a_method_that_a_client_made_up_is_not_logged(log: io.StringIO):
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    await Exchange(fail).run("SK-SECRET", "/")
    assert "SK-SECRET" not in log.getvalue()
    assert lines(log)[0]["message"] == "other unmatched failed"


async def test_no_line_of_a_request_holds_what_the_client_sent(log: io.StringIO):
    """An exception's text may quote the value it stumbled over: in a request only types and frames are logged."""
    await Exchange().run("POST", "/broken", {"Authorization": "Bearer sk-secret", "X-Request-Id": "mine"})
    text = log.getvalue()
    assert SECRET not in text
    assert "sk-secret" not in text
    failure = lines(log)[0]
    assert failure["message"] == "POST /broken failed"
    assert failure["exception"].endswith("builtins.ValueError")
    assert "raise ValueError(SECRET)" in failure["exception"]


def test_a_chain_of_exceptions_is_shown_without_their_words():
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise RuntimeError(SECRET) from cause
    except RuntimeError as error:
        shown = format_exception(error, with_message=False)
    assert SECRET not in shown
    assert shown.index("builtins.KeyError") < shown.index("then:") < shown.index("builtins.RuntimeError")


def test_outside_a_request_the_words_are_shown():
    """Loading a model handles nobody's input, and its errors are for the operator."""
    error = RuntimeError("no space left")
    assert format_exception(error, with_message=True) == "RuntimeError: no space left"


@pytest.mark.parametrize(
    ("log_format", "is_terminal", "as_json"),
    [
        (LogFormat.AUTO, True, False),
        (LogFormat.AUTO, False, True),
        (LogFormat.JSON, True, True),
        (LogFormat.TEXT, False, False),
    ],
)
def test_lines_are_json_where_nobody_reads_along_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, is_terminal: bool, as_json: bool
):
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stderr", stderr)
    assert logs_as_json(log_format) is as_json


@pytest.mark.parametrize("log_format", [LogFormat.JSON, LogFormat.TEXT])
def test_workers_log_in_the_gateways_format(monkeypatch: pytest.MonkeyPatch, log_format: LogFormat):
    """Their lines go to the same stderr, and so to the same collector."""
    opened: list[dict[str, object]] = []
    monkeypatch.setattr("app.engine.ProcessWorker", lambda _options, **given: opened.append(given))
    engine = Engine.from_settings(with_settings(server={"log_format": log_format}))
    engine._open_worker(LoadOptions(folder="/nowhere", source="fake"), 0)
    assert [given["log_json"] for given in opened] == [log_format is LogFormat.JSON]


def test_a_text_line_ends_with_its_request():
    record = logging.LogRecord("app.x", logging.WARNING, "", 0, "something %s", ("happened",), None)
    record.request_id = "mine"
    record.__dict__.update(fields(ignored=1))
    assert TextFormatter().format(record)[9:] == "warning something happened [mine]"
