"""The HTTP server around the application: uvicorn, its settings, its end, and the address it listens on."""

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Generator
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from typing_extensions import override

from app.connection import Guard, GuardedProtocol
from app.observe import ASGIApp, HttpObserver
from app.settings import ServerSettings


class Server(uvicorn.Server):
    """uvicorn's server, which ends of its own accord when it is told to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_started: Callable[[], None],
        on_stopping: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.num_cut_off = 0
        """Requests that were not left to finish when it ended."""
        self._on_started = on_started
        self._on_stopping = on_stopping

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept, and say so."""
        await super().startup(sockets)
        self._on_started()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, accept nothing more, and let requests in flight finish."""
        self._on_stopping()
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves both then to the end of the loop, which cancels them, and logs that as errors.
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()

    @override
    async def _wait_tasks_to_complete(self) -> None:
        """Wait for requests in flight; those that are left when the wait ends are cancelled by who waits."""
        try:
            await super()._wait_tasks_to_complete()
        finally:
            self.num_cut_off = len(self.server_state.tasks)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an end; one that comes after it does not wait for requests in flight."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGTERM and SIGINT.

        uvicorn raises the signal again after a clean end, so that the process looks killed. A server that did
        what it was told exits with 0.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def build_server(
    app: ASGIApp,
    settings: ServerSettings,
    *,
    observer: HttpObserver,
    on_started: Callable[[], None],
    on_stopping: Callable[[], None],
) -> Server:
    """Put the application behind the guard.

    Args:
        app: The whole application, its outer layer included.
        settings: Limits and timeouts. The address is the bound socket's, which ``serve`` is given.
        observer: Counts what is refused before the application sees it.
        on_started: Called when the port answers.
        on_stopping: Called when the server was told to stop, before the port closes.
    """
    guard = Guard(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        observer=observer,
    )
    config = uvicorn.Config(
        cast("Any", app),
        # uvicorn calls it like the class; it only ever looks at a string.
        http=cast("Any", partial(GuardedProtocol, guard)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # Forwarded headers are not believed: nothing here depends on the client's address.
        proxy_headers=False,
        # uvicorn takes whole seconds in its signature, and hands the number to call_later as it is.
        timeout_keep_alive=cast("int", settings.keep_alive_timeout_s),
        timeout_graceful_shutdown=cast("int", settings.shutdown_timeout_s),
    )
    return Server(config, on_started=on_started, on_stopping=on_stopping)


class BindError(Exception):
    """The port cannot be opened. The message is one line of advice."""


def bind_socket(host: str, port: int) -> socket.socket:
    """Take the address, before anything slow happens.

    Raises:
        BindError: It is taken, not ours, or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BindError(
            f'"{host}" is no address: give --host 127.0.0.1, 0.0.0.0, or a name of this machine.'
        ) from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        # Two sockets may be bound to one address as long as neither listens (SO_REUSEADDR, socket(7)).
        sock.listen()
    except OSError as error:
        sock.close()
        raise BindError(_bind_advice(host, port, error)) from error
    sock.setblocking(False)
    return sock


def _bind_advice(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                f"Port {port} on {host} is in use: stop the program that has it, "
                "or choose another with --port (0 takes a free one)."
            )
        case errno.EACCES | errno.EPERM:
            return f"Port {port} needs privileges: choose one from 1024 up with --port."
        case errno.EADDRNOTAVAIL:
            return f'"{host}" is not an address of this machine: give --host 127.0.0.1, or 0.0.0.0 for all.'
        case _:
            return f"Cannot listen on {host} port {port}: {error.strerror}."


def url_of(sock: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{_reachable(host)}:{port}"


def _reachable(host: str) -> str:
    match host:
        case "0.0.0.0":
            return "127.0.0.1"
        case "::":
            return "[::1]"
        case _:
            return f"[{host}]" if ":" in host else host
