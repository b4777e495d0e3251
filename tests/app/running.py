"""A real server on a free port, in a thread of its own, around whatever ASGI application a test brings."""

import asyncio
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Self

import uvloop

from app.observe import ASGIApp, ObservedApp
from app.server import Server, bind_socket, build_server
from app.settings import ServerSettings
from batching import Lane


@dataclass
class Recorder:
    """An HttpObserver that keeps what it was told."""

    seen: list[tuple[str, str, int]] = field(default_factory=list)
    failures: list[str | None] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

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
        assert duration_s >= 0
        with self.arrived:
            self.failures.append(failure)
            self.seen.append((route, method, status))
            self.arrived.notify_all()

    def observe_stage(self, stage: str, duration_s: float, *, lane: Lane) -> None:
        assert duration_s >= 0

    def wait_for(self, expected: tuple[str, str, int]) -> None:
        """Return once it was told; the answer may reach the client before the count is made."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: expected in self.seen, timeout=10), (expected, self.seen)


@dataclass
class Running:
    """A server that answers."""

    address: tuple[str, int]
    server: Server
    recorder: Recorder
    loop: asyncio.AbstractEventLoop

    def connect(self) -> "Client":
        return Client(socket.create_connection(self.address, timeout=10))

    def ask(self, request: bytes) -> "Reply":
        """Send one request on a connection of its own."""
        with self.connect() as client:
            client.send(request)
            return client.read_reply()


def taken_socket() -> socket.socket:
    """Bound, and not listening: nobody else can take its port, and whoever connects is refused."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@contextmanager
def running(app: ASGIApp, settings: ServerSettings | None = None) -> Generator[Running]:
    """Serve ``app`` behind the outer layer and the guard until the block ends."""
    recorder = Recorder()
    sock = bind_socket("127.0.0.1", 0)
    address = sock.getsockname()
    started = threading.Event()
    made: list[tuple[Server, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        server = build_server(
            ObservedApp(app, recorder),
            settings or ServerSettings(shutdown_timeout_s=5),
            observer=recorder,
            on_started=started.set,
            on_stopping=lambda: None,
        )
        made.append((server, asyncio.get_running_loop()))
        await server.serve(sockets=[sock])

    def main() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=main)
    thread.start()
    assert started.wait(10), "the server did not start"
    server, loop = made[0]
    try:
        yield Running(address=address, server=server, recorder=recorder, loop=loop)
    finally:
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive(), "the server did not stop"


@dataclass
class Reply:
    """One response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The OpenAI error; fails if the reply is no such thing."""
        assert self.headers["content-type"].startswith("application/json"), self
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class Client:
    """A raw connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send it all, or as much as the other side takes before it closes."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def read_reply(self) -> Reply:
        """Wait for one whole response."""
        head = self.read_head()
        return replace(head, body=self.file.read(int(head.headers.get("content-length", 0))))

    def read_head(self) -> Reply:
        """Wait for one response's status and headers."""
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        return Reply(status, headers, b"")

    def wait_for_close(self) -> bytes:
        """Everything that still comes until the other side closes."""
        return self.file.read()


async def live(receive: Any, send: Any) -> None:
    """The lifespan protocol with nothing to do."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def living(app: ASGIApp) -> ASGIApp:
    """An application that only answers requests; what else uvicorn asks is answered here."""

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
        else:
            await app(scope, receive, send)

    return whole


@living
async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer 200 with the number of body bytes."""
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        num_bytes += len(message["body"])
        if not message["more_body"]:
            break
    await answer(send, {"bytes": num_bytes})


async def answer(send: Any, content: object, status: int = 200) -> None:
    """One JSON response."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
