"""Two small web servers for fetches: one that may be reached, and one inside that must never be.

Both are on loopback. The one outside has the address ``OUTSIDE``, which tests allow on top of the real rule, so
that every other inner address, the other server's among them, stays refused by the rule that is shipped.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from app.addresses import Address, is_public_address
from app.fetch import WEB_PORTS, Fetcher, Resolve
from app.settings import MediaSettings

OUTSIDE = ip_address("127.0.0.2")
INSIDE = ip_address("127.0.0.1")

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes one whole response, or as much of one as it likes."""


def answer(
    body: bytes = b"",
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
) -> Answer:
    """A response; ``length`` is what it claims its body to have."""
    fields = {"Content-Length": len(body) if length is None else length, **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body)

    return write


def redirect(location: str, *, status: int = 302) -> Answer:
    return answer(b"moved", status=status, headers={"Location": location})


async def endless(writer: asyncio.StreamWriter) -> None:
    """Chunks for as long as anybody reads."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        await writer.drain()


async def slow_drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, so that nothing ever looks idle."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def slow_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-More: x\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@dataclass
class ImageServer:
    """Answers by path, and remembers who came."""

    answers: dict[str, Answer] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    """Of the requests, query included."""
    headers: list[dict[str, str]] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0
    max_open: int = 0
    """Most connections at one time."""
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until_asked(self, count: int) -> None:
        """Return when so many requests have come, and been noted."""
        async with self.asked:
            await self.asked.wait_for(lambda: len(self.paths) >= count)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        self.all_closed.clear()
        watcher = None
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request, *lines = head.strip().split("\r\n")
            path = request.split(" ")[1]
            async with self.asked:
                self.paths.append(path)
                self.asked.notify_all()
            self.headers.append(
                {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
            )
            writing = asyncio.ensure_future(self.answers[path.partition("?")[0]](writer))
            # The client sends nothing more: when this ends, it has gone.
            watcher = asyncio.ensure_future(reader.read())
            await asyncio.wait([writing, watcher], return_when=asyncio.FIRST_COMPLETED)
            writing.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await writing
            with suppress(ConnectionError):
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError, ConnectionError):
                    await watcher
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            self.num_open -= 1
            if not self.num_open:
                self.all_closed.set()


@dataclass
class Network:
    """The server outside, the one inside, on one port, and what names lead to."""

    outside: ImageServer
    inside: ImageServer
    port: int
    names: dict[str, Sequence[Address]]
    num_lookups: int = 0
    dialled: list[str] = field(default_factory=list)
    """Addresses that were dialled."""

    def url(self, path: str = "/", *, host: str = "images.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def resolve(self, host: str) -> Sequence[Address]:
        self.num_lookups += 1
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host]

    def fetcher(
        self,
        settings: MediaSettings | None = None,
        *,
        resolve: Resolve | None = None,
        is_allowed_address: Callable[[Address], bool] = lambda address: (
            address == OUTSIDE or is_public_address(address)
        ),
    ) -> Fetcher:
        return Fetcher(
            settings or MediaSettings(fetch_timeout_s=5),
            resolve=resolve or self.resolve,
            is_allowed_address=is_allowed_address,
            web_ports={*WEB_PORTS, self.port},
        )


def record_dials(dialled: list[str], *, lead_nowhere: bool = False) -> None:
    """Note every address that the running loop dials from now on."""
    loop = asyncio.get_running_loop()
    sock_connect = loop.sock_connect

    async def recording(sock: socket.socket, address: tuple[str, int]) -> None:
        dialled.append(address[0])
        if lead_nowhere:
            raise ConnectionRefusedError
        await sock_connect(sock, address)

    loop.sock_connect = recording  # type: ignore[method-assign]


async def started(
    outside: ImageServer, inside: ImageServer, tls: ssl.SSLContext | None
) -> tuple[asyncio.Server, list[asyncio.Server]]:
    """Both servers, on one port that is free at both addresses."""
    while True:
        outer = await asyncio.start_server(outside.serve, str(OUTSIDE), 0, ssl=tls)
        try:
            port = outer.sockets[0].getsockname()[1]
            return outer, [await asyncio.start_server(inside.serve, str(INSIDE), port)]
        except OSError:  # another program has the port at the other address
            outer.close()
            await outer.wait_closed()


@asynccontextmanager
async def small_network(tls: ssl.SSLContext | None = None) -> AsyncIterator[Network]:
    """Both servers, until the block ends."""
    outside, inside = ImageServer(), ImageServer()
    outer, inner = await started(outside, inside, tls)
    port = outer.sockets[0].getsockname()[1]
    with suppress(OSError):  # where there is no IPv6, there is nothing to reach by it
        inner.append(await asyncio.start_server(inside.serve, "::1", port))
    network = Network(
        outside=outside, inside=inside, port=port, names={"images.test": [OUTSIDE], "inside.test": [INSIDE]}
    )
    if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        record_dials(network.dialled)
    try:
        yield network
    finally:
        for server in (outer, *inner):
            server.close()
            await server.wait_closed()
