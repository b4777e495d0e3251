"""What begins and ends what: the server, and the model that loads beside it."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.lifecycle import serve_until_stopped
from app.observe import ASGIApp, ObservedApp
from app.server import bind_socket
from app.settings import ServerSettings
from batching import ShuttingDownError
from model import CheckpointError
from tests.app.running import Recorder, answer, echo, live


@dataclass
class FakeEngine:
    """Keeps what was asked of it, in order."""

    fails_with: Exception | None = None
    loads_for_ever: bool = False
    events: list[str] = field(default_factory=list)
    loading: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self.events.append("start")
        self.loading.set()
        if self.fails_with is not None:
            raise self.fails_with
        if self.loads_for_ever:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.events.append("start cancelled")

    drain_s: float | None = None
    """What ``stop`` was given."""
    on_stop: Callable[[], None] = lambda: None

    def drain(self) -> None:
        self.events.append("drain")

    async def stop(self, *, drain_s: float) -> None:
        self.events.append("stop")
        self.drain_s = drain_s
        self.on_stop()


async def run(
    engine: FakeEngine,
    app: ASGIApp = echo,
    *,
    sock: socket.socket | None = None,
    shutdown_timeout_s: float = 1,
) -> tuple[int, list[str]]:
    """Serve until it ends of its own accord; the exit code and what people were told."""
    told: list[str] = []
    code = await serve_until_stopped(
        engine,
        app,
        sock or bind_socket("127.0.0.1", 0),
        ServerSettings(shutdown_timeout_s=shutdown_timeout_s),
        observer=Recorder(),
        on_ready=lambda: told.append("ready"),
        on_failure=told.append,
    )
    return code, told


def stopped(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What the line of the end tells machines, of each end."""
    lines = [record for record in caplog.records if record.msg.startswith("stopped in ")]
    return [record.__dict__["fields"] for record in lines]


async def test_a_model_that_cannot_be_had_ends_the_server_with_its_one_line(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "app.lifecycle")
    engine = FakeEngine(fails_with=CheckpointError("there is no such model; check the name"))
    assert await run(engine) == (1, ["there is no such model; check the name"])
    assert engine.events == ["start", "drain", "stop"]
    assert stopped(caplog) == []


async def test_a_bug_while_loading_ends_the_server_too(caplog: pytest.LogCaptureFixture):
    """A gateway that never becomes ready must not look alive for ever."""
    engine = FakeEngine(fails_with=ZeroDivisionError())
    assert await run(engine) == (
        1,
        ["The model could not be loaded: ZeroDivisionError. This is a bug; its trace is above."],
    )
    assert "the model could not be loaded" in caplog.messages


async def test_a_stop_does_not_wait_for_the_model():
    """The first load may be a download of an hour."""
    engine = FakeEngine(loads_for_ever=True)
    ending = asyncio.create_task(run(engine))
    await engine.loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ending == (0, [])
    assert engine.events == ["start", "drain", "start cancelled", "stop"]


# The end of requests in flight ------------------------------------------------------------------------------


@dataclass
class Stuck:
    """An application whose answers wait, as for passes that take long."""

    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    has_ended: bool = False
    """It was told that the server ends."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            self.has_ended = True
            return
        self.has_begun.set()
        await asyncio.shield(self.outcome)
        await answer(send, {})

    def give_up(self) -> None:
        """As the batcher does when it is stopped."""
        self.outcome.set_exception(ShuttingDownError())


async def ask(engine: FakeEngine, sock: socket.socket) -> bytes:
    """The first line of the answer to a request."""
    await engine.loading.wait()
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line


async def test_requests_in_flight_finish_first(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "app.lifecycle")
    engine, app, sock = FakeEngine(), Stuck(), bind_socket("127.0.0.1", 0)
    ending = asyncio.create_task(run(engine, app, sock=sock, shutdown_timeout_s=60))
    asking = asyncio.create_task(ask(engine, sock))
    await app.has_begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    app.outcome.set_result(None)
    assert (await asking).startswith(b"HTTP/1.1 200 ")
    assert await ending == (0, ["ready"])
    assert engine.events == ["start", "drain", "stop"]
    assert engine.drain_s is not None
    assert 0 < engine.drain_s < 60
    (end,) = stopped(caplog)
    assert end["cut_off"] == 0
    assert 0 < end["took_s"] < 60
    assert caplog.messages[-1] == f"stopped in {end['took_s']:.1f} s; requests cut off: 0"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
async def test_a_second_signal_does_not_wait_for_requests_in_flight(
    second: signal.Signals, caplog: pytest.LogCaptureFixture
):
    """Whoever presses Ctrl+C twice, or whose supervisor is out of patience, wants it to end."""
    caplog.set_level(logging.INFO, "app.lifecycle")
    app, sock = Stuck(), bind_socket("127.0.0.1", 0)
    engine = FakeEngine(on_stop=app.give_up)
    ending = asyncio.create_task(
        run(engine, ObservedApp(app, Recorder()), sock=sock, shutdown_timeout_s=3600)
    )
    asking = asyncio.create_task(ask(engine, sock))
    await app.has_begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), second)
    assert await ending == (0, ["ready"])
    assert engine.drain_s == 0
    assert (await asking).startswith(b"HTTP/1.1 503 ")
    assert "CancelledError" not in caplog.text
    # Left to the end of the loop, it would be cancelled there, with an error and its trace in the log.
    assert app.has_ended
    assert [end["cut_off"] for end in stopped(caplog)] == [1]


async def test_the_server_and_the_engine_share_one_deadline(caplog: pytest.LogCaptureFixture):
    """A supervisor kills what takes longer than it was told; two waits in a row would be twice as long."""
    caplog.set_level(logging.INFO, "app.lifecycle")
    engine, app, sock = FakeEngine(), Stuck(), bind_socket("127.0.0.1", 0)
    ending = asyncio.create_task(
        run(engine, ObservedApp(app, Recorder()), sock=sock, shutdown_timeout_s=0.01)
    )
    asking = asyncio.create_task(ask(engine, sock))
    await app.has_begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ending == (0, ["ready"])
    assert engine.drain_s == 0
    assert (await asking).startswith(b"HTTP/1.1 503 ")
    assert "CancelledError" not in caplog.text
    assert [end["cut_off"] for end in stopped(caplog)] == [1]


async def test_a_signal_while_the_engine_ends_does_not_tear_it():
    """Its workers would be left to find out by themselves."""
    engine = FakeEngine(on_stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
    ending = asyncio.create_task(run(engine))
    await engine.loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await ending)[0] == 0
