"""Large bodies share a budget of memory; small ones never wait for them."""

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest

from app.budget import FREE_BYTES, LARGEST_BODIES, BodyBudget
from app.errors import OverloadedError
from tests.app.fakes import Answer, FakeEngine, Gateway, with_settings

LARGE = "a " * (5 * FREE_BYTES)


async def test_a_body_that_finds_no_room_is_told_to_come_back():
    """Without a bound, forty uploads of 64 MiB are the end of the process."""
    engine = FakeEngine(hold=asyncio.Event())
    gateway = Gateway(engine, with_settings(server={"max_body_bytes": len(LARGE) + 100}))
    uploads: list[asyncio.Task[Answer]] = []
    for _ in range(LARGEST_BODIES):
        uploads.append(asyncio.create_task(gateway.embed(LARGE)))
        await engine.started.wait()
        engine.started.clear()

    refused = await gateway.embed(LARGE)
    query = asyncio.create_task(gateway.embed("a query"))
    await engine.started.wait()
    engine.hold.set()

    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert (await query).status == 200
    assert {answer.status for answer in await asyncio.gather(*uploads)} == {200}
    assert (await gateway.embed(LARGE)).status == 200
    assert gateway.sample("laneway_request_failures_total", reason="overloaded") == 1


async def read_all(budget: BodyBudget, *chunks: int, then: BaseException | None = None) -> None:
    """Read a body of chunks of these sizes, then answer or fail."""
    messages = [{"type": "http.request", "body": b"x" * size} for size in chunks]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def app(_scope: object, receive: Any, _send: object) -> None:
        for _ in chunks:
            await receive()
        if then is not None:
            raise then

    await budget.around(cast("Any", app))(cast("Any", {}), cast("Any", receive), cast("Any", None))


@pytest.mark.parametrize("end", [None, ZeroDivisionError(), asyncio.CancelledError()])
async def test_whatever_ends_a_request_gives_its_room_back(end: BaseException | None):
    """A leak of a few bytes would refuse every upload in the end."""
    budget = BodyBudget(100)
    for _ in range(3):
        with suppress(ZeroDivisionError, asyncio.CancelledError):
            await read_all(budget, FREE_BYTES, 60, 40, then=end)
    assert repr(budget) == "<BodyBudget 0 of 100 bytes>"
    with pytest.raises(OverloadedError):
        await read_all(budget, FREE_BYTES, 60, 41)
    assert repr(budget) == "<BodyBudget 0 of 100 bytes>"
