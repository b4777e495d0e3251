"""From an open port to the exit code: the server answers at once, the model loads beside it.

Laws: whatever ends first ends the other. A model that cannot be loaded stops the server; a server that is
told to stop does not wait for a model to load. Everything in flight has one deadline, and a second signal
brings it at once.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from app.logs import fields
from app.observe import ASGIApp, HttpObserver
from app.server import build_server
from app.settings import ServerSettings
from model import ModelError

logger = logging.getLogger(__name__)

OK = 0
FAILED = 1


class Loadable(Protocol):
    """What loads beside the open port; the engine, as far as it is known here."""

    async def start(self) -> None:
        """Load; returns when requests can be answered.

        Raises:
            ModelError: The model cannot be had. The message is one line that says what to do.
        """
        ...

    def drain(self) -> None:
        """Take nothing new; readiness is false from here on."""
        ...

    async def stop(self, *, drain_s: float) -> None:
        """End; what is still in flight may take so long to finish."""
        ...


async def serve_until_stopped(
    engine: Loadable,
    app: ASGIApp,
    sock: socket.socket,
    settings: ServerSettings,
    *,
    observer: HttpObserver,
    on_ready: Callable[[], None],
    on_failure: Callable[[str], None],
) -> int:
    """Serve until a signal or a failure ends it.

    Args:
        engine: Loaded beside the server, and stopped after the last answer.
        app: The whole application.
        sock: Bound to the address.
        settings: Timeouts of the connections and of the end.
        observer: Counts requests.
        on_ready: Called once the model answers.
        on_failure: Called with one line if the model cannot be loaded.

    Returns:
        The exit code: 0 after SIGTERM or SIGINT, 1 if the model could not be loaded.
    """
    loop = asyncio.get_running_loop()
    exit_code = OK
    loading: asyncio.Task[None] | None = None
    stopping_s: float | None = None
    deadline_s = 0.0

    async def load() -> None:
        nonlocal exit_code
        try:
            await engine.start()
        except ModelError as error:
            on_failure(str(error))
        except Exception as error:
            logger.exception("the model could not be loaded")
            on_failure(
                f"The model could not be loaded: {type(error).__name__}. This is a bug; its trace is above."
            )
        else:
            on_ready()
            return
        exit_code = FAILED
        server.should_exit = True

    def begin_loading() -> None:
        nonlocal loading
        loading = asyncio.create_task(load())

    def begin_stopping() -> None:
        nonlocal stopping_s, deadline_s
        stopping_s = loop.time()
        deadline_s = stopping_s + settings.shutdown_timeout_s
        engine.drain()

    server = build_server(
        app, settings, observer=observer, on_started=begin_loading, on_stopping=begin_stopping
    )
    try:
        await server.serve(sockets=[sock])
    finally:
        # The server has let its signals go; what is left takes a moment, and must not be torn in two.
        with server.capture_signals():
            if loading is not None:
                loading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await loading
            drain_s = 0.0 if server.force_exit else max(0.0, deadline_s - loop.time())
            await engine.stop(drain_s=drain_s)
    # A start that failed has said why, and that is its last word.
    if stopping_s is not None and exit_code == OK:
        took_s = loop.time() - stopping_s
        logger.info(
            "stopped in %.1f s; requests cut off: %d",
            took_s,
            server.num_cut_off,
            extra=fields(took_s=round(took_s, 3), cut_off=server.num_cut_off),
        )
    return exit_code
