"""However a socket cuts a stream of frames, the same frames come out."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.types import Features
from model.worker import frames
from model.worker.assembly import Assembler
from tests.model.worker.fakes import fake_info, features_of

SMALL = b"".join(frames.pack_run(1, [features_of(1, 2, 3), features_of(4)]))
WITH_PIXELS = b"".join(
    frames.pack_run(
        2, [Features(token_ids=np.arange(9, dtype=np.int32), images=(np.full((300, 301, 3), 7, np.uint8),))]
    )
)
STOP = frames.pack_head(frames.Stop())


def fill(assembler: Assembler, data: bytes) -> list[tuple[frames.ToWorker, memoryview]]:
    """Hand data over as a socket would that has just this much."""
    whole = []
    while data:
        num_bytes = min(len(data), len(assembler.space))
        assembler.space[:num_bytes] = data[:num_bytes]
        whole += assembler.take(num_bytes)
        data = data[num_bytes:]
    return whole


@given(st.lists(st.sampled_from([SMALL, WITH_PIXELS, STOP]), max_size=12), st.data())
def test_frames_come_out_whole_and_in_order_however_they_are_cut(sent: list[bytes], data: st.DataObject):
    stream = b"".join(sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=20))
    assembler = Assembler(frames.unpack_for_worker)
    arrived = []
    for start, end in pairwise(sorted([0, *cuts, len(stream)])):
        arrived += fill(assembler, stream[start:end])
    assert [frame_of(message, body) for message, body in arrived] == sent
    assert not assembler.is_within_frame


def frame_of(message: frames.ToWorker, body: memoryview) -> bytes:
    return frames.pack_head(message, body_bytes=len(body)) + bytes(body)


def test_what_came_is_not_overwritten_by_what_comes_next():
    assembler = Assembler(frames.unpack_for_worker)
    [(first, body)] = fill(assembler, SMALL)
    fill(assembler, b"".join(frames.pack_run(3, [features_of(7, 7, 7), features_of(7)])))
    assert [one.token_ids.tolist() for one in frames.unpack_run(first, body)] == [[1, 2, 3], [4]]


def test_bodies_are_aligned_for_kernels_and_may_be_written_to():
    """torch warns of arrays that may not be written to, and numpy is slow on numbers that lie askew."""
    assembler = Assembler(frames.unpack_for_worker)
    for message, body in fill(assembler, SMALL + WITH_PIXELS):
        for one in frames.unpack_run(message, body):
            assert one.token_ids.flags.aligned
            assert one.token_ids.flags.writeable


def test_a_large_body_is_received_where_it_is_read():
    """Pixels of one request are up to 100 MB."""
    assembler = Assembler(frames.unpack_for_worker)
    assembler.space[: len(STOP)] = STOP
    assembler.take(len(STOP))
    assembler.space[:4096] = WITH_PIXELS[:4096]
    assembler.take(4096)
    assert len(assembler.space) == len(WITH_PIXELS) - 4096
    assembler.space[:] = WITH_PIXELS[4096:]
    space = assembler.space
    [(_, body)] = assembler.take(len(space))
    space[-1] = 8
    assert body[-1] == 8


def test_a_header_larger_than_a_chunk_comes_whole():
    """The first answer holds a tokenizer of up to 40 MB."""
    info = fake_info(prompts={"query": "x" * 3 * frames.CHUNK_BYTES})
    assembler = Assembler(frames.unpack_for_gateway)
    [(message, body)] = fill(assembler, frames.pack_head(frames.Ready(info=info)))
    assert message == frames.Ready(info=info)
    assert len(body) == 0


def test_a_frame_that_announces_too_much_is_refused_before_anything_is_allocated():
    assembler = Assembler(frames.unpack_for_worker)
    prefix = frames._PREFIX.pack(b"LNW1", 10, 2**40)
    with pytest.raises(frames.FrameError, match="a body of 1099511627776 bytes; 1073741824 are allowed"):
        fill(assembler, prefix)
