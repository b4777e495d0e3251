"""Puts frames together from the pieces in which a socket gives them.

Law of this file: a large body is never copied. It is received where it will be read; what is copied is
small, so that the buffer it came in can take the next.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from model.worker.frames import CHUNK_BYTES, PREFIX_BYTES, unpack_prefix

Message = TypeVar("Message")

_ALIGNMENT_BYTES = 16
"""Bodies are read as arrays of numbers, which kernels want aligned."""


class Assembler(Generic[Message]):
    """Owns the buffers of one direction of one connection.

    Whoever reads the socket fills the beginning of ``space``, and says by ``take`` how much of it.
    """

    def __init__(self, unpack: Callable[[memoryview], Message]) -> None:
        """Begin at the beginning of a frame.

        Args:
            unpack: Reads a header; raises ``FrameError`` at one that may not come here.
        """
        self._unpack = unpack
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        self._num_bytes = 0
        """Bytes at the beginning of the chunk: less than a frame."""
        self._large: _LargeFrame | None = None

    @property
    def space(self) -> memoryview:
        """Where the next bytes are to be put; never empty."""
        return self._chunk[self._num_bytes :] if self._large is None else self._large.space

    @property
    def is_within_frame(self) -> bool:
        """Whether the last frame that began has not come to its end."""
        return self._num_bytes > 0 or self._large is not None

    def take(self, num_bytes: int) -> list[tuple[Message, memoryview]]:
        """Take what was put into ``space``; returns the frames that are whole now, messages and bodies.

        Raises:
            FrameError: What came is no frame, or none that may come here.
        """
        if self._large is not None:
            self._large.num_missing -= num_bytes
            if self._large.num_missing:
                return []
            large, self._large = self._large, None
            return [(self._unpack(large.header), large.body)]
        return self._take_from_chunk(self._num_bytes + num_bytes)

    def _take_from_chunk(self, end: int) -> list[tuple[Message, memoryview]]:
        whole: list[tuple[Message, memoryview]] = []
        start = 0
        while end - start >= PREFIX_BYTES:
            header_start = start + PREFIX_BYTES
            header_bytes, body_bytes = unpack_prefix(self._chunk[start:header_start])
            body_start = header_start + header_bytes
            stop = body_start + body_bytes
            if stop - start > CHUNK_BYTES:
                self._large = _LargeFrame(header_bytes, body_bytes, self._chunk[header_start:end])
                start = end
            elif stop > end:
                break
            else:
                message = self._unpack(self._chunk[header_start:body_start])
                whole.append((message, memoryview(bytearray(self._chunk[body_start:stop]))))
                start = stop
        self._num_bytes = end - start
        if start:
            self._chunk[: self._num_bytes] = self._chunk[start:end]
        return whole


class _LargeFrame:
    """One frame that is larger than a chunk, in a buffer of its own size."""

    def __init__(self, header_bytes: int, body_bytes: int, beginning: memoryview) -> None:
        padding = -header_bytes % _ALIGNMENT_BYTES
        buffer = np.empty(padding + header_bytes + body_bytes, dtype=np.uint8).data
        self.header = buffer[padding : padding + header_bytes]
        self.body = buffer[padding + header_bytes :]
        self._bytes = buffer[padding:]
        self._bytes[: len(beginning)] = beginning
        self.num_missing = header_bytes + body_bytes - len(beginning)

    @property
    def space(self) -> memoryview:
        return self._bytes[len(self._bytes) - self.num_missing :]
