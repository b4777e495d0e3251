"""The guarded server, over real sockets."""

import asyncio
import gc
import logging
import re
import select
import socket
import threading
import weakref
from collections.abc import Generator, Iterable
from typing import Any, NoReturn

import pytest
from typing_extensions import override

from app.connection import MAX_HEAD_BYTES, AnswerWriter
from app.logs import request_id_var
from app.server import BindError, bind_socket, url_of
from app.settings import ServerSettings
from tests.app.running import Client, Running, answer, echo, living, running

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
HEALTHY = b"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nhello"

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def server() -> Generator[Running]:
    with running(echo) as it:
        yield it


@pytest.fixture(scope="module")
def impatient() -> Generator[Running]:
    """A server whose patience is over before a test would notice."""
    settings = ServerSettings(header_timeout_s=0.15, body_timeout_s=0.2, keep_alive_timeout_s=0.25)
    with running(echo, settings) as it:
        yield it


def assert_healthy(server: Running) -> None:
    """The next client is served as if nothing had happened."""
    reply = server.ask(HEALTHY)
    assert (reply.status, reply.body) == (200, b'{"bytes": 5}')


# Slow clients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n\r\n", b"POST /v1/emb", b"POST / HTTP/1.1\r\nHost: here\r\nX-Half: "], ids=repr
)
def test_a_client_that_does_not_finish_its_head_is_told_and_cut_off(impatient: Running, sent: bytes):
    """Else a thousand idle connections hold a thousand file descriptors for ever."""
    with impatient.connect() as client:
        client.send(sent)
        reply = client.read_reply()
        assert reply.status == 408
        assert reply.headers["connection"] == "close"
        assert reply.error == {
            "message": "The request's head was not complete after 0.15 seconds (header_timeout_s).",
            "type": "invalid_request_error",
            "param": None,
            "code": "request_timeout",
        }
        assert client.wait_for_close() == b""
    assert_healthy(impatient)


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"],
    ids=repr,
)
def test_a_client_that_does_not_finish_its_body_is_told_and_cut_off(impatient: Running, framing: bytes):
    with impatient.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: here\r\nX-Request-Id: mine-1\r\n" + framing)
        reply = client.read_reply()
        assert reply.status == 408
        assert reply.error["message"] == (
            "The request's body was not complete after 0.2 seconds (body_timeout_s)."
        )
        assert reply.headers["x-request-id"] == "mine-1"
        assert client.wait_for_close() == b""
    impatient.recorder.wait_for(("unmatched", "POST", 408))
    assert_healthy(impatient)


def test_an_idle_connection_is_closed_without_a_word(impatient: Running):
    """Keep-alive ends in silence: a 408 would be taken for the answer to the next request."""
    with impatient.connect() as client:
        client.send(GET)
        assert client.read_reply().status == 200
        assert client.wait_for_close() == b""


def test_a_slow_answer_is_not_mistaken_for_a_slow_client():
    """Both timeouts are about what the client owes us; the model may take its time."""
    answered = threading.Event()

    @living
    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        patience_over = loop.create_future()
        loop.call_later(0.4, patience_over.set_result, None)
        await patience_over
        await answer(send, {})
        answered.set()

    with (
        running(slow, ServerSettings(header_timeout_s=0.1, body_timeout_s=0.1)) as server,
        server.connect() as client,
    ):
        # The second request's first bytes come while the first is being answered.
        client.send(GET + b"GET / HT")
        assert client.read_reply().status == 200
        assert client.read_reply().status == 408
    assert answered.is_set()


# Oversized and broken heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\nX-Big: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nX-Endless: " + b"a" * (MAX_HEAD_BYTES + 1),
        b"GET / HTTP/1.1\r\nHost: here\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: "
        + b"a" * 300_000,
        b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 20_000,
    ],
    ids=[
        "one header of 1 MB",
        "a header without an end",
        "20,000 headers",
        "a long path",
        "a long trailer",
        "many trailers",
    ],
)
def test_a_head_over_the_cap_is_refused_while_it_is_still_coming(server: Running, head: bytes):
    """What is not capped is collected in memory, before anything could look at it."""
    with server.connect() as client:
        client.send(head)
        reply = client.read_reply()
        assert reply.status == 431
        assert reply.error["message"] == "The request's head is larger than 65536 bytes."
        assert reply.error["code"] == "headers_too_large"
    assert_healthy(server)


def test_a_head_just_under_the_cap_is_served(server: Running):
    value = b"a" * (MAX_HEAD_BYTES - 200)
    assert server.ask(b"GET / HTTP/1.1\r\nHost: here\r\nX-Big: " + value + b"\r\n\r\n").status == 200


def test_a_large_body_is_not_taken_for_a_large_head(server: Running):
    size = 3_000_000
    request = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    assert server.ask(request).body == b'{"bytes": 3000000}'


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_a_client_whose_upload_is_refused_half_way_gets_the_answer(connection: bytes):
    """It reads no sooner than it has sent all: a connection closed under it would lose the answer."""

    @living
    async def refusing(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await answer(send, {"refused": True}, status=503)

    size = 30_000_000
    head = b"POST / HTTP/1.1\r\nHost: here\r\nConnection: %b\r\nContent-Length: %d\r\n\r\n"
    with running(refusing) as server, server.connect() as client:
        client.sock.sendall(head % (connection, size) + b"x" * size)
        reply = client.read_reply()
        assert (reply.status, reply.body) == (503, b'{"refused": true}')
        if connection == b"close":
            assert client.wait_for_close() == b""
        else:
            client.send(GET)
            assert client.read_reply().status == 503


class Canary:
    """Something that a request leads to."""


def test_nothing_of_a_request_outlives_its_connection():
    """In a ring of references its body would wait for the garbage collector, which counts objects, not bytes."""
    is_gone = threading.Event()
    canaries: list[weakref.ref[Canary]] = []

    async def keeping(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["canary"] = canary = Canary()
            canaries.append(weakref.ref(canary, lambda _: is_gone.set()))
        await echo(scope, receive, send)

    with running(keeping) as server:
        gc.disable()
        try:
            assert server.ask(HEALTHY).status == 200
            assert is_gone.wait(10)
        finally:
            gc.enable()


def test_a_client_that_never_stops_sending_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    """What it was refused is read on only until a patient client would have looked for the answer."""
    monkeypatch.setattr("app.connection._LINGER_S", 0.05)
    monkeypatch.setattr("app.connection._MAX_LINGER_S", 0.2)
    with running(echo) as server:
        with server.connect() as client:
            client.send(b"nonsense\r\n\r\n")
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                send_for_ever(client)
        assert_healthy(server)


def send_for_ever(client: Client) -> NoReturn:
    while True:
        client.sock.sendall(b"x" * 1000)


def test_a_body_in_one_byte_chunks_is_served(server: Running):
    """Six bytes of framing for each byte of body are wasteful, and allowed."""
    chunks = b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n"
    reply = server.ask(b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert reply.body == b'{"bytes": 30000}'


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client hello",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: here\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nBad Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nX: a\x00b\r\n\r\n",
        b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=[
        "TLS", "garbage", "version", "raw byte in path", "header name", "NUL", "CONNECT", "CL+TE", "two CL", "negative CL",
        "chunk size",
    ],
)  # fmt: skip
def test_what_is_not_http_gets_an_error_that_sdks_can_read(server: Running, request_bytes: bytes):
    """uvicorn answers in plain text; the SDKs then show no message."""
    with server.connect() as client:
        client.send(request_bytes)
        reply = client.read_reply()
        assert reply.status == 400
        assert reply.error["message"] == "The request is not valid HTTP/1.1."
        assert reply.error["code"] == "malformed_request"
        assert reply.headers["connection"] == "close"
        assert reply.headers["x-request-id"].startswith("req_")
        assert client.wait_for_close() == b""
    assert_healthy(server)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"BREW / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"FROB123 /v1/embeddings HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"get / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),  # methods are case-sensitive (RFC 9110, 9.1)
        ([b"GETS / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"!#$%&'*+-.^_`|~ / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"DESCRIBE / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),  # RTSP's, for which the parser has another error
        ([b"\r\n\r\nBREW / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"BREW / HTTP/1.1\nHost: here\n\n"], 501),
        ([b"B", b"REW / HTTP/1.1\r\nHost: here\r\n\r\n"], 501),
        ([b"BREW"], 501),
        ([b"BREW /a/long/pa"], 501),
        ([b"B", b"(EW / HTTP/1.1\r\nHost: here\r\n\r\n"], 400),
        ([b"BREW(1) / HTTP/1.1\r\nHost: here\r\n\r\n"], 400),
        ([b" BREW / HTTP/1.1\r\nHost: here\r\n\r\n"], 400),
        ([b"BREW  / HTTP/1.1\r\nHost: here\r\n\r\n"], 400),
        ([b"BREW /\r\n\r\n"], 400),
        ([b"BREW / HTTP/2.0\r\nHost: here\r\n\r\n"], 400),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], 400),
        ([b"\xc3\x89 / HTTP/1.1\r\nHost: here\r\n\r\n"], 400),
    ],
    ids=lambda value: str(value[-1])[2:20] if isinstance(value, list) else str(value),
)  # fmt: skip
def test_a_method_that_nobody_knows_is_not_implemented_and_what_is_none_not_http(
    server: Running, pieces: list[bytes], status: int
):
    """RFC 9110, 15.6.2. Whoever reads that it is no HTTP looks for a mistake that there is not."""
    with server.connect() as client:
        for piece in pieces:
            client.send(piece)
            if piece is not pieces[-1]:
                assert_healthy(server)  # by the answer to another the server has read this one
        reply = client.read_reply()
        assert reply.status == status
        message, code = {
            400: ("The request is not valid HTTP/1.1.", "malformed_request"),
            501: ("The request's method is not one that this server knows.", "unknown_method"),
        }[status]
        assert (reply.error["message"], reply.error["code"]) == (message, code)
        assert reply.headers["connection"] == "close"
        assert client.wait_for_close() == b""
    assert_healthy(server)


def test_an_unknown_method_is_told_after_other_requests_too(server: Running):
    with server.connect() as client:
        for size in (5, 200_000):
            client.send(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
            assert client.read_reply().status == 200
        client.send(b"BREW / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.read_reply().status == 501


@pytest.mark.parametrize("hosts", [b"", b"Host: one\r\nHost: two\r\n"], ids=["none", "two"])
def test_http_1_1_needs_exactly_one_host(server: Running, hosts: bytes):
    """RFC 9112, 3.2: two Host headers are how caches and proxies are led astray."""
    reply = server.ask(b"GET / HTTP/1.1\r\n" + hosts + b"\r\n")
    assert reply.status == 400
    assert reply.error["message"] == "An HTTP/1.1 request needs exactly one Host header."
    assert_healthy(server)


def test_http_1_0_needs_no_host(server: Running):
    """Load balancers' health checks speak it."""
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").status == 200


def test_an_offer_to_upgrade_is_passed_over(server: Running):
    """``curl --http2`` sends it; RFC 9110, 7.8 lets a server ignore it."""
    request = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert server.ask(request).status == 200


def test_what_the_guard_refuses_is_counted_without_the_clients_words(server: Running):
    server.ask(b"nonsense\r\n\r\n")
    server.recorder.wait_for(("unmatched", "other", 400))


@pytest.mark.parametrize(
    ("request_bytes", "failure"),
    [
        (b"nonsense\r\n\r\n", "validation"),
        (b"GET / HTTP/1.1\r\n\r\n", "validation"),
        (b"GET / HTTP/1.1\r\nHost: here\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n", "too_long"),
        (b"POST / HTT", "timeout"),
        (b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf", "timeout"),
    ],
    ids=["garbage", "no host", "large head", "slow head", "slow body"],
)
def test_what_the_guard_refuses_counts_as_a_failure(request_bytes: bytes, failure: str):
    settings = ServerSettings(header_timeout_s=0.15, body_timeout_s=0.15, shutdown_timeout_s=5)
    with running(echo, settings) as server:
        server.ask(request_bytes)
    assert server.recorder.failures == [failure]


@pytest.mark.parametrize(
    ("request_bytes", "line"),
    [
        (b"nonsense\r\n\r\n", "other unmatched 400 [0-9.]+ ms malformed_request"),
        (b"GET / HTTP/1.1\r\n\r\n", "other unmatched 400 [0-9.]+ ms malformed_request"),
        (
            b"GET / HTTP/1.1\r\nHost: here\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n",
            "other unmatched 431 [0-9.]+ ms headers_too_large",
        ),
        (b"POST / HTT", "other unmatched 408 [0-9.]+ ms request_timeout"),
        (
            b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf",
            "POST unmatched 408 [0-9.]+ ms request_timeout",
        ),
        (
            # Refused before the application has been given a turn.
            b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            "POST unmatched 400 [0-9.]+ ms malformed_request",
        ),
    ],
    ids=["garbage", "no host", "large head", "slow head", "slow body", "broken body"],
)
def test_the_line_of_a_refusal_names_its_request_and_its_code(
    request_bytes: bytes, line: str, caplog: pytest.LogCaptureFixture
):
    """The id is what a client reports; a line without it, or without the cause, finds nobody."""
    ids: dict[str, str | None] = {}

    def keep_id(record: logging.LogRecord) -> bool:
        # While the line is written: afterwards the variable is another request's.
        ids[record.name] = request_id_var.get()
        return True

    caplog.handler.addFilter(keep_id)
    caplog.set_level(logging.INFO, logger="app.observe")
    settings = ServerSettings(header_timeout_s=0.15, body_timeout_s=0.15, shutdown_timeout_s=5)
    with running(echo, settings) as server:
        reply = server.ask(request_bytes)
    (record,) = [record for record in caplog.records if record.name == "app.observe"]
    assert re.fullmatch(line, record.getMessage())
    caplog.handler.removeFilter(keep_id)
    assert ids["app.observe"] == reply.headers["x-request-id"]
    assert record.__dict__["fields"]["code"] == reply.error["code"]


def test_a_head_request_is_answered_without_a_body(server: Running):
    """The connection stays in step: what follows is the answer to the next request."""
    with server.connect() as client:
        client.send(b"HEAD / HTTP/1.1\r\nHost: here\r\n\r\n")
        head = client.read_head()
        client.send(HEALTHY)
        assert client.read_reply().body == b'{"bytes": 5}'
    assert head.status == 200
    assert head.headers["content-length"] == str(len(b'{"bytes": 0}'))


def test_an_answers_head_and_body_come_together():
    """Apart they wake the client twice, and on a busy machine each time costs a switch to it and back."""
    clients: list[Client] = []
    came_early: list[bool] = []

    @living
    async def busy(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        # Within the loop's turn, so that nothing can leave meanwhile but by a call of its own.
        came_early.append(bool(select.select([clients[0].sock], [], [], 0.05)[0]))
        await send({"type": "http.response.body", "body": b"ok"})

    with running(busy) as server, server.connect() as client:
        clients.append(client)
        client.send(GET)
        assert client.sock.recv(65_536).endswith(b"\r\n\r\nok")
    assert came_early == [False]


def test_a_head_whose_body_takes_its_time_does_not_wait_for_it():
    is_seen = threading.Event()

    @living
    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        length = (b"content-length", b"2")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await asyncio.to_thread(is_seen.wait, 20)
        await send({"type": "http.response.body", "body": b"ok"})

    with running(slow) as server, server.connect() as client:
        client.send(GET)
        assert client.read_head().status == 200
        is_seen.set()
        assert client.file.read(2) == b"ok"


class NotingTransport(asyncio.Transport):
    """Keeps the calls that would go into the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.is_closed = False

    @override
    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.calls.append(bytes(data))

    @override
    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    @override
    def is_closing(self) -> bool:
        return self.is_closed


async def test_what_is_written_in_one_turn_goes_out_in_order_and_in_pairs():
    writer = AnswerWriter(transport := NotingTransport(), asyncio.get_running_loop())
    for data in (b"head", b"body", b"more"):
        writer.write(data)
    await asyncio.sleep(0)
    assert transport.calls == [b"headbody", b"more"]
    writer.write(b"last")
    writer.flush()
    await asyncio.sleep(0)
    assert transport.calls == [b"headbody", b"more", b"last"]


async def test_what_is_left_when_the_client_has_gone_is_dropped():
    writer = AnswerWriter(transport := NotingTransport(), asyncio.get_running_loop())
    writer.write(b"head")
    transport.is_closed = True
    await asyncio.sleep(0)
    assert transport.calls == []


# Pipelining ------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(server: Running):
    with server.connect() as client:
        client.send(HEALTHY + HEALTHY.replace(b"5\r\n\r\nhello", b"2\r\n\r\nhi"))
        assert client.read_reply().body == b'{"bytes": 5}'
        assert client.read_reply().body == b'{"bytes": 2}'


def test_garbage_after_a_request_does_not_land_in_its_answer():
    """The first answer leaves whole; then the connection is closed."""
    may_answer = threading.Event()

    @living
    async def waiting(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await asyncio.to_thread(may_answer.wait, 10)
        await answer(send, {"whole": True})

    with running(waiting) as server, server.connect() as client:
        client.send(GET + b"\x00\x01garbage\r\n\r\n")
        may_answer.set()
        assert client.read_reply().body == b'{"whole": true}'
        assert client.wait_for_close() == b""


# Stopping --------------------------------------------------------------------------------------------------


def test_a_request_in_flight_is_finished_and_nobody_new_gets_in():
    entered, may_answer = threading.Event(), threading.Event()

    @living
    async def waiting(scope: dict[str, Any], receive: Any, send: Any) -> None:
        import asyncio

        entered.set()
        await asyncio.to_thread(may_answer.wait, 10)
        await answer(send, {"finished": True})

    with running(waiting) as server, server.connect() as client:
        client.send(GET)
        assert entered.wait(10)
        server.server.should_exit = True
        wait_until_refused(server.address)
        may_answer.set()
        reply = client.read_reply()
        assert (reply.status, reply.body) == (200, b'{"finished": true}')
        assert client.wait_for_close() == b""


def test_a_request_that_outlasts_the_shutdown_is_answered_503():
    """uvicorn cancels it and says 500 in plain text; 503 tells the SDKs to try again elsewhere."""
    entered = threading.Event()

    @living
    async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
        import asyncio

        entered.set()
        await asyncio.get_running_loop().create_future()

    with running(endless, ServerSettings(shutdown_timeout_s=0.2)) as server, server.connect() as client:
        client.send(GET)
        assert entered.wait(10)
        server.server.should_exit = True
        reply = client.read_reply()
        assert reply.status == 503
        assert reply.error["message"] == "The server is shutting down."
        assert reply.error["code"] == "shutting_down"
        assert reply.headers["retry-after"] == "2"
        assert reply.headers["connection"] == "close"
        server.recorder.wait_for(("unmatched", "GET", 503))
        assert server.recorder.failures == ["unavailable"]


def wait_until_refused(address: tuple[str, int]) -> None:
    for _ in range(1_000):
        try:
            # Each round waits on the kernel: a connection that is still taken is closed by the server.
            with Client(socket.create_connection(address, timeout=10)) as client:
                client.send(b"")
                client.wait_for_close()
        except (ConnectionRefusedError, ConnectionResetError):
            return
    pytest.fail("the port stayed open")


# Taking the address ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_the_way_out():
    taken = bind_socket("127.0.0.1", 0)
    port = taken.getsockname()[1]
    try:
        with pytest.raises(BindError) as caught:
            bind_socket("127.0.0.1", port)
    finally:
        taken.close()
    assert str(caught.value) == (
        f"Port {port} on 127.0.0.1 is in use: stop the program that has it, "
        "or choose another with --port (0 takes a free one)."
    )


def test_a_host_that_is_no_address_is_named():
    with pytest.raises(BindError) as caught:
        bind_socket("no host", 0)
    assert (
        str(caught.value)
        == '"no host" is no address: give --host 127.0.0.1, 0.0.0.0, or a name of this machine.'
    )


def test_an_address_of_another_machine_is_named():
    """192.0.2.0/24 is for documentation (RFC 5737): no machine has it."""
    with pytest.raises(BindError) as caught:
        bind_socket("192.0.2.1", 0)
    assert (
        str(caught.value)
        == '"192.0.2.1" is not an address of this machine: give --host 127.0.0.1, or 0.0.0.0 for all.'
    )


def test_a_privileged_port_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch):
    """Tests may run as root, who is refused nothing; so the kernel's answer is given by hand."""

    class Forbidding(socket.socket):
        def bind(self, address: Any, /) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Forbidding)
    with pytest.raises(BindError) as caught:
        bind_socket("127.0.0.1", 80)
    assert str(caught.value) == "Port 80 needs privileges: choose one from 1024 up with --port."


def test_the_url_is_one_that_a_client_on_this_machine_can_use():
    with bind_socket("0.0.0.0", 0) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
