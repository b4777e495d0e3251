"""Room is taken before it is filled, and given in the order it was asked for."""

import asyncio

import pytest

from app.room import Room


async def taken(room: Room, num_bytes: int) -> asyncio.Task[None]:
    """A take that has asked, whether or not it got its room yet."""
    task = asyncio.create_task(room.take(num_bytes))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_what_finds_no_room_waits_until_there_is():
    room = Room(100)
    await room.take(60)
    waiting = await taken(room, 60)
    assert repr(room) == "<Room 60 of 100 bytes, 1 waiting>"
    room.give(60)
    await waiting
    assert repr(room) == "<Room 60 of 100 bytes, 0 waiting>"


async def test_a_large_share_is_not_passed_by_small_ones():
    """It would starve where small ones come all the time."""
    room = Room(100)
    await room.take(60)
    large = await taken(room, 90)
    small = await taken(room, 10)
    assert not small.done()
    room.give(60)
    await asyncio.gather(large, small)
    assert room.held_bytes == 100


async def test_more_than_all_of_it_is_given_an_empty_room():
    """Else it would wait for ever, and everybody behind it."""
    room = Room(100)
    await room.take(1)
    whale = await taken(room, 1000)
    assert not whale.done()
    room.give(1)
    await whale
    room.give(1000)
    assert room.held_bytes == 0


async def test_what_is_taken_in_a_part_is_taken_in_the_whole():
    whole = Room(100)
    part = Room(50, within=whole)
    await part.take(40)
    in_part = await taken(part, 20)
    in_whole = await taken(whole, 60)
    assert (in_part.done(), in_whole.done()) == (False, True)
    part.give(40)
    await in_part
    assert (part.held_bytes, whole.held_bytes) == (20, 80)


async def test_who_gives_up_waiting_for_the_whole_holds_nothing_of_the_part():
    whole = Room(100)
    part = Room(50, within=whole)
    await whole.take(90)
    gone = await taken(part, 20)
    assert part.held_bytes == 20
    gone.cancel()
    await asyncio.wait([gone])
    assert (part.held_bytes, whole.held_bytes, whole.num_waiting) == (0, 90, 0)


@pytest.mark.parametrize("is_admitted", [False, True], ids=["while it waits", "as its room comes"])
async def test_a_wait_that_is_cancelled_takes_nothing(is_admitted: bool):
    room = Room(100)
    await room.take(100)
    gone = await taken(room, 50)
    behind = await taken(room, 60)
    if is_admitted:
        room.give(100)
        gone.cancel()
    else:
        gone.cancel()
        await asyncio.sleep(0)
        room.give(100)
    await behind
    await asyncio.wait([gone])
    assert gone.cancelled()
    assert room.held_bytes == 60
