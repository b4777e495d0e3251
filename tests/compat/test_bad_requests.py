"""Broken and hostile requests against the real server: each is refused, and the next good one is answered."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.app.running import Client, Reply
from tests.servers import RunningServer

GOOD = b'{"model": "all-MiniLM-L6-v2", "input": "a good request"}'


@contextmanager
def connected(server: RunningServer) -> Iterator[Client]:
    with Client(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as client:
        yield client


def head(body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = {
        "Host": "x",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **(headers or {}),
    }
    return b"POST /v1/embeddings HTTP/1.1\r\n" + b"".join(
        f"{name}: {value}\r\n".encode("latin-1") for name, value in lines.items()
    ) + b"\r\n"  # fmt: skip


def ask(server: RunningServer, request: bytes) -> Reply:
    with connected(server) as client:
        client.send(request)
        return client.read_reply()


def assert_serves(server: RunningServer) -> None:
    reply = ask(server, head(GOOD) + GOOD)
    assert reply.status == 200, reply
    assert len(json.loads(reply.body)["data"][0]["embedding"]) == 384


def with_input(fragment: bytes) -> bytes:
    return b'{"model": "all-MiniLM-L6-v2", "input": ' + fragment + b"}"


START = b"POST /v1/embeddings HTTP/1.1\r\n"
HEADS: dict[str, tuple[bytes, int]] = {
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "HTTP/2 without being asked": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (b"EHLO mail.example\r\n\r\n", 400),
    "no host": (START + b"Content-Length: 0\r\n\r\n", 400),
    "two hosts": (START + b"Host: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n", 400),
    "a length and chunks": (
        START + b"Host: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400
    ),
    "two lengths": (START + b"Host: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "a negative length": (START + b"Host: x\r\nContent-Length: -1\r\n\r\n", 400),
    "a length that is no number": (START + b"Host: x\r\nContent-Length: ten\r\n\r\n", 400),
    "a space before the colon": (START + b"Host : x\r\nContent-Length: 0\r\n\r\n", 400),
    "a header of 1 MB": (START + b"Host: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
    "20,000 headers": (START + b"Host: x\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", 431),
    "a path of 1 MB": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "a body of a terabyte": (START + b"Host: x\r\nContent-Length: 1000000000000\r\n\r\n", 413),
    "a compressed body": (
        START + b"Host: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", 415
    ),
    "a path in the host": (b"GET /v1/models HTTP/1.1\r\nHost: a/health?x=\r\n\r\n", 400),
    "a wrong path": (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a wrong method": (b"DELETE /v1/embeddings HTTP/1.1\r\nHost: x\r\n\r\n", 405),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_bad_head_is_refused_and_harms_nobody(name: str, server: RunningServer) -> None:
    request, status = HEADS[name]
    reply = ask(server, request)
    assert reply.status == status, reply
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["x-request-id"].startswith("req_")
    assert_serves(server)


BODIES: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", None),
    "null": (b"null", None),
    "a list": (b"[]", None),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, None),
    "trailing junk": (GOOD + b"x", None),
    "half of it": (GOOD[:40], None),
    "lists 100,000 deep": (with_input(b"[" * 100_000 + b"]" * 100_000), "input[0][0]"),
    "lists 100,000 deep where nobody looks": (
        GOOD[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        None,
    ),
    "bytes that are no UTF-8": (with_input(b'"\xff\xfe"'), None),
    "a surrogate in UTF-8": (with_input(b'"\xed\xa0\x80"'), None),
    "half a surrogate pair": (with_input(b'"\\ud800"'), None),
    "NaN": (with_input(b"[NaN]"), None),
    "a number beyond floats": (with_input(b"[1e400]"), None),
    "a number of 5,000 digits": (with_input(b"[" + b"9" * 5_000 + b"]"), None),
    "a negative token id": (with_input(b"[-1]"), "input"),
    "a token id of 2**63": (with_input(b"[9223372036854775808]"), "input[0]"),
    "no inputs": (with_input(b"[]"), "input"),
    "an empty text": (with_input(b'["a", ""]'), "input[1]"),
    "3,000 inputs": (with_input(b'["a"' + b', "a"' * 2_999 + b"]"), "input"),
    "texts and ids mixed": (with_input(b'["a", 1]'), "input[1]"),
    "a text that is too long to read": (with_input(b'"' + b"a " * 600_000 + b'"'), "input"),
    "dimensions that are no whole number": (GOOD[:-1] + b', "dimensions": 5.5}', "dimensions"),
    "dimensions that are a truth value": (GOOD[:-1] + b', "dimensions": true}', "dimensions"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_on_a_connection_that_goes_on(name: str, server: RunningServer) -> None:
    """The answer is never a 5xx: the SDKs would send the same body twice more."""
    body, param = BODIES[name]
    with connected(server) as client:
        client.send(head(body) + body)
        reply = client.read_reply()
        assert reply.status == 400, reply
        if param is not None:
            assert reply.error["param"] == param, reply.error
        client.send(head(GOOD) + GOOD)
        assert client.read_reply().status == 200


@pytest.mark.parametrize(
    "body",
    [with_input(b'"a\\u0000b"'), GOOD[:-1] + b', "input": "the last one wins"}', GOOD[:-1] + b', "x": 1}'],
    ids=["NUL", "a key twice", "a field of others"],
)
def test_what_is_odd_but_allowed_is_answered(body: bytes, server: RunningServer) -> None:
    assert ask(server, head(body) + body).status == 200


@pytest.mark.parametrize(
    "offered", ["../../etc/passwd", "a" * 10_000, "a b", "\xe9"], ids=["path", "long", "space", "latin-1"]
)
def test_a_request_id_that_is_unsafe_in_logs_is_replaced(offered: str, server: RunningServer) -> None:
    reply = ask(server, head(GOOD, {"X-Request-Id": offered}) + GOOD)
    assert reply.status == 200
    assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "sent",
    [b"", START, START + b"Host: x\r\n", head(GOOD), head(GOOD) + GOOD[:20], head(GOOD) + GOOD],
    ids=["nothing", "a line", "half a head", "a head", "half a body", "everything"],
)
def test_a_client_that_leaves_harms_nobody(sent: bytes, server: RunningServer) -> None:
    with connected(server) as client:
        client.send(sent)
    assert_serves(server)
