"""A request is worked on for as long as its client is there."""

import asyncio
from typing import Any

import pytest

from app.errors import ClientGoneError
from app.serving import while_connected


class Client:
    """A connection whose body has been read; ``leave`` closes it."""

    def __init__(self) -> None:
        self._has_left = asyncio.Event()

    def leave(self) -> None:
        self._has_left.set()

    async def receive(self) -> Any:
        await self._has_left.wait()
        return {"type": "http.disconnect"}


class Work:
    """Waits until it is told to finish, and remembers whether it was cancelled."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.was_cancelled = False

    async def run(self) -> str:
        self.has_begun.set()
        try:
            await self.may_finish.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "vectors"


async def test_work_is_cancelled_when_its_client_leaves():
    client, work = Client(), Work()
    serving = asyncio.create_task(while_connected(client.receive, work.run()))
    await work.has_begun.wait()
    await asyncio.sleep(0)
    client.leave()
    with pytest.raises(ClientGoneError):
        await serving
    assert work.was_cancelled


async def test_a_client_that_leaves_after_the_work_cancels_nothing():
    """The request goes on to its answer, and a late cancellation would break it off."""
    client, work = Client(), Work()
    num_tasks = len(asyncio.all_tasks())

    async def serve() -> str:
        result = await while_connected(client.receive, work.run())
        client.leave()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == num_tasks + 1, "the watcher has ended"
        return result

    serving = asyncio.create_task(serve())
    await work.has_begun.wait()
    await asyncio.sleep(0)
    work.may_finish.set()
    assert await serving == "vectors"


async def test_a_client_that_leaves_in_the_turn_in_which_the_work_ends_harms_nobody():
    client, work = Client(), Work()
    serving = asyncio.create_task(while_connected(client.receive, work.run()))
    await work.has_begun.wait()
    await asyncio.sleep(0)
    work.may_finish.set()
    client.leave()
    assert await serving == "vectors"


async def test_a_request_that_the_server_cancels_is_not_mistaken_for_a_client_that_left():
    client, work = Client(), Work()
    serving = asyncio.create_task(while_connected(client.receive, work.run()))
    await work.has_begun.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert work.was_cancelled


async def test_an_error_of_the_work_is_the_requests_own():
    async def failing() -> None:
        raise ArithmeticError("the model raised")

    with pytest.raises(ArithmeticError, match="the model raised"):
        await while_connected(Client().receive, failing())
