"""Large bodies share a budget of memory, and wait for it; small ones never do."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from app.budget import FREE_BYTES, BodyBudget
from app.errors import OverloadedError
from tests.app.fakes import FakeEngine, Gateway, with_settings

LARGE = "a " * (5 * FREE_BYTES)
TWO_LARGE = with_settings(limits={"max_held_body_bytes": 2 * len(LARGE)})


async def test_a_body_that_finds_no_room_waits_for_it_and_a_query_does_not():
    """Without a bound, forty uploads of 64 MiB are the end of the process."""
    engine = FakeEngine(hold=asyncio.Event())
    gateway = Gateway(engine, TWO_LARGE)
    uploads = [asyncio.create_task(gateway.embed(LARGE)) for _ in range(4)]
    await until(engine, num_calls=2)

    query = asyncio.create_task(gateway.embed("a query"))
    await until(engine, num_calls=3)
    assert [len(call.inputs[0].text or "") for call in engine.calls] == [len(LARGE), len(LARGE), 7]

    engine.hold.set()
    assert (await query).status == 200
    assert {answer.status for answer in await asyncio.gather(*uploads)} == {200}


async def test_a_body_that_finds_no_room_in_time_is_told_to_come_back():
    """Its client gives up at some time, too; told by then, it knows why."""
    engine = FakeEngine(hold=asyncio.Event())
    gateway = Gateway(
        engine,
        with_settings(limits={"max_held_body_bytes": len(LARGE)}, server={"body_timeout_s": 0.05}),
    )
    upload = asyncio.create_task(gateway.embed(LARGE))
    await until(engine, num_calls=1)

    refused = await gateway.embed(LARGE)
    engine.hold.set()

    assert (refused.status, refused.error["code"]) == (503, "overloaded")
    assert "(max_held_body_bytes) for 0.05 seconds." in refused.error["message"]
    assert refused.headers["retry-after"] == "1"
    assert (await upload).status == 200
    assert (await gateway.embed(LARGE)).status == 200
    assert gateway.sample("laneway_request_failures_total", reason="overloaded") == 1


async def until(engine: FakeEngine, *, num_calls: int) -> None:
    """Wait until the engine has been called so often."""
    async with asyncio.timeout(10):
        while len(engine.calls) < num_calls:
            engine.started.clear()
            await engine.started.wait()


class Body:
    """A body that a client sends in chunks, as far as it is read."""

    def __init__(self, budget: BodyBudget, *chunks: int, declared: int | None = None) -> None:
        self.unread = list(chunks)
        self.headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
        self.may_answer = asyncio.Event()
        self.answers = asyncio.create_task(self._sent_to(budget))

    async def _sent_to(self, budget: BodyBudget) -> None:
        async def receive() -> dict[str, Any]:
            # What a socket has comes at once; a reader still lets others have their turn.
            await asyncio.sleep(0)
            body = b"x" * self.unread.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.unread)}

        async def app(_scope: object, receive: Any, _send: object) -> None:
            while (await receive())["more_body"]:
                pass
            await self.may_answer.wait()

        scope = cast("Any", {"headers": self.headers, "state": {}})
        await budget.around(cast("Any", app))(scope, cast("Any", receive), cast("Any", None))


async def turns(number: int = 20) -> None:
    """Let everybody do what can be done without anything new from outside."""
    for _ in range(number):
        await asyncio.sleep(0)


def budget_of(max_bytes: int, *, max_wait_s: float = 60) -> BodyBudget:
    return BodyBudget(max_bytes, max_body_bytes=FREE_BYTES + 100, max_wait_s=max_wait_s)


@pytest.mark.parametrize("declared", [FREE_BYTES + 60, None], ids=["of a known size", "of an unknown size"])
async def test_bodies_that_come_at_the_same_time_do_not_wait_for_each_other(declared: int | None):
    """Room that was taken piece by piece would end in halves of bodies that nobody can finish."""
    budget = budget_of(100)
    bodies = [Body(budget, FREE_BYTES, 20, 20, 20, declared=declared) for _ in range(3)]
    await turns()
    assert [len(body.unread) for body in bodies] == [0, 2, 2]
    for body in bodies:
        body.may_answer.set()
    await asyncio.gather(*(body.answers for body in bodies))
    assert repr(budget) == "<BodyBudget <Room 0 of 100 bytes, 0 waiting>>"


async def test_a_body_of_unknown_size_gives_back_what_it_did_not_need():
    budget = budget_of(150)
    first = Body(budget, FREE_BYTES, 20, 20)
    await turns()
    assert repr(budget) == "<BodyBudget <Room 40 of 150 bytes, 0 waiting>>"
    second = Body(budget, FREE_BYTES, 50, 50)
    await turns()
    assert second.unread == []
    first.may_answer.set()
    second.may_answer.set()
    await asyncio.gather(first.answers, second.answers)
    assert repr(budget) == "<BodyBudget <Room 0 of 150 bytes, 0 waiting>>"


async def test_a_small_body_takes_no_room():
    budget = budget_of(1)
    bodies = [Body(budget, FREE_BYTES // 2, FREE_BYTES // 2) for _ in range(3)]
    await turns()
    assert repr(budget) == "<BodyBudget <Room 0 of 1 bytes, 0 waiting>>"
    for body in bodies:
        body.may_answer.set()
    await asyncio.gather(*(body.answers for body in bodies))


async def read_all(budget: BodyBudget, chunks: Sequence[int], *, then: BaseException | None = None) -> None:
    """Read a body of chunks of these sizes, then answer or fail."""
    rest = list(chunks)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * rest.pop(0), "more_body": bool(rest)}

    async def app(_scope: object, receive: Any, _send: object) -> None:
        for _ in chunks:
            await receive()
        if then is not None:
            raise then

    state: dict[str, Any] = {"body": "as Litestar keeps it"}
    scope = cast("Any", {"headers": [(b"content-length", b"%d" % sum(chunks))], "state": state})
    try:
        await budget.around(cast("Any", app))(scope, cast("Any", receive), cast("Any", None))
    finally:
        assert state == {}, "the server keeps it for as long as the connection is idle"


@pytest.mark.parametrize("end", [None, ZeroDivisionError(), asyncio.CancelledError()])
async def test_whatever_ends_a_request_gives_its_room_back(end: BaseException | None):
    """A leak of a few bytes would refuse every upload in the end."""
    budget = budget_of(100, max_wait_s=0.01)
    for _ in range(3):
        with suppress(ZeroDivisionError, asyncio.CancelledError):
            await read_all(budget, (FREE_BYTES, 60, 40), then=end)
    assert repr(budget) == "<BodyBudget <Room 0 of 100 bytes, 0 waiting>>"
    holder = Body(budget, FREE_BYTES + 50)
    await turns()
    with pytest.raises(OverloadedError) as caught:
        await read_all(budget, (FREE_BYTES, 60))
    assert str(caught.value) == (
        "Other requests held 50 of the 100 bytes that there are for large bodies (max_held_body_bytes) "
        "for 0.01 seconds."
    )
    holder.may_answer.set()
    await holder.answers
    assert repr(budget) == "<BodyBudget <Room 0 of 100 bytes, 0 waiting>>"
