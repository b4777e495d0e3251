"""A prefix says how much follows, and says no more than is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.framing import PREFIX_BYTES, FrameError, Framing

FRAMING = Framing(mark=b"TEST", max_header_bytes=100, max_body_bytes=2**40)


@given(header=st.binary(max_size=100), body_bytes=st.integers(0, 2**40))
def test_a_head_tells_its_sizes(header: bytes, body_bytes: int):
    head = FRAMING.pack_head(header, body_bytes=body_bytes)
    assert FRAMING.unpack_prefix(head[:PREFIX_BYTES]) == (len(header), body_bytes)
    assert head[PREFIX_BYTES:] == header


@pytest.mark.parametrize(
    ("header", "body_bytes", "complaint"),
    [
        (bytes(101), 0, "a header of 101 bytes; 100 are allowed"),
        (b"", 2**40 + 1, "a body of 1099511627777 bytes; 1099511627776 are allowed"),
    ],
)
def test_what_is_too_large_is_neither_sent_nor_received(header: bytes, body_bytes: int, complaint: str):
    generous = Framing(mark=b"TEST", max_header_bytes=2**20, max_body_bytes=2**60)
    with pytest.raises(FrameError, match=complaint):
        FRAMING.pack_head(header, body_bytes=body_bytes)
    with pytest.raises(FrameError, match=complaint):
        FRAMING.unpack_prefix(generous.pack_head(header, body_bytes=body_bytes)[:PREFIX_BYTES])


def test_another_connections_frames_are_none():
    other = Framing(mark=b"HTTP", max_header_bytes=100, max_body_bytes=100)
    with pytest.raises(FrameError, match="a frame starts with b'TEST', this one with b'HTTP'"):
        FRAMING.unpack_prefix(other.pack_head(b"", body_bytes=0))
