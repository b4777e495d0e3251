"""What begins and ends what: the server, and the model that loads beside it."""

import asyncio
from dataclasses import dataclass, field

import pytest

from app.lifecycle import serve_until_stopped
from app.server import bind_socket
from app.settings import ServerSettings
from model import CheckpointError
from tests.app.running import Recorder, echo


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

    def drain(self) -> None:
        self.events.append("drain")

    async def stop(self) -> None:
        self.events.append("stop")


async def run(engine: FakeEngine) -> tuple[int, list[str]]:
    """Serve until it ends of its own accord; the exit code and what people were told."""
    told: list[str] = []
    sock = bind_socket("127.0.0.1", 0)
    code = await serve_until_stopped(
        engine,
        echo,
        sock,
        ServerSettings(shutdown_timeout_s=1),
        observer=Recorder(),
        on_ready=lambda: told.append("ready"),
        on_failure=told.append,
    )
    return code, told


async def test_a_model_that_cannot_be_had_ends_the_server_with_its_one_line():
    engine = FakeEngine(fails_with=CheckpointError("there is no such model; check the name"))
    assert await run(engine) == (1, ["there is no such model; check the name"])
    assert engine.events == ["start", "drain", "stop"]


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
    import os
    import signal

    engine = FakeEngine(loads_for_ever=True)
    ending = asyncio.create_task(run(engine))
    await engine.loading.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await ending == (0, [])
    assert engine.events == ["start", "drain", "start cancelled", "stop"]
