"""Writes of one turn leave together, in order, and nothing overtakes them."""

import asyncio

from app.gathering import SEND_AT_ONCE_BYTES, GatheringTransport


class RecordingTransport(asyncio.Transport):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[object] = []

    def write(self, data: object) -> None:
        self.calls.append(data)

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & {call for call in self.calls if isinstance(call, str)})


def gathering() -> tuple[GatheringTransport, RecordingTransport]:
    underneath = RecordingTransport()
    return GatheringTransport(underneath, asyncio.get_running_loop()), underneath


async def one_turn() -> None:
    await asyncio.sleep(0)


async def test_head_and_body_leave_as_one_write():
    transport, underneath = gathering()
    transport.write(b"head")
    transport.write(b"body")
    assert underneath.calls == []
    await one_turn()
    assert underneath.calls == [b"headbody"]
    transport.write(b"next")
    await one_turn()
    assert underneath.calls == [b"headbody", b"next"]


async def test_much_is_not_held_back():
    """Flow control has to see a large answer when it is written."""
    transport, underneath = gathering()
    transport.write(b"head")
    transport.write(bytes(SEND_AT_ONCE_BYTES))
    assert underneath.calls == [b"head" + bytes(SEND_AT_ONCE_BYTES)]
    await one_turn()
    assert len(underneath.calls) == 1


async def test_closing_sends_what_was_written_first():
    for end, name in (("close", "close"), ("write_eof", "eof")):
        transport, underneath = gathering()
        transport.writelines([b"last ", b"words"])
        getattr(transport, end)()
        assert underneath.calls == [b"last words", name]
        await one_turn()
        assert len(underneath.calls) == 2


async def test_an_abort_loses_what_was_not_sent():
    transport, underneath = gathering()
    transport.write(b"lost")
    transport.abort()
    await one_turn()
    assert underneath.calls == ["abort"]


async def test_nothing_is_written_to_a_transport_that_closed_meanwhile():
    transport, underneath = gathering()
    transport.write(b"late")
    underneath.close()
    await one_turn()
    assert underneath.calls == ["close"]
