"""How a message between two processes of ours begins: with a mark, and the sizes of what follows.

A frame is a prefix (mark, size of the header, size of the body), a header and a body of raw bytes. What the
two latter hold is the affair of the connection's own ``frames.py``.

Rule 1: sizes are checked before anything is allocated.
Rule 2: nothing here reads or writes a socket.
"""

import struct
from dataclasses import dataclass

_PREFIX = struct.Struct("=4sIQ")
PREFIX_BYTES = _PREFIX.size


class FrameError(Exception):
    """The bytes are no frame, or not one that may come here. The connection is of no more use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """What frames look like at both ends of one connection."""

    mark: bytes
    """Four bytes, by which a stranger's data is told from a frame."""
    max_header_bytes: int
    max_body_bytes: int

    def pack_head(self, header: bytes, *, body_bytes: int) -> bytes:
        """Prefix and header of a frame; ``body_bytes`` bytes of body must follow it.

        Raises:
            FrameError: Either is larger than is allowed.
        """
        self._check_sizes(len(header), body_bytes)
        return _PREFIX.pack(self.mark, len(header), body_bytes) + header

    def unpack_prefix(self, prefix: bytes | memoryview) -> tuple[int, int]:
        """Read how many bytes of header and of body follow the prefix.

        Raises:
            FrameError: It does not start with the mark, or announces more than is allowed.
        """
        mark, header_bytes, body_bytes = _PREFIX.unpack(prefix)
        if mark != self.mark:
            raise FrameError(f"a frame starts with {self.mark!r}, this one with {mark!r}")
        self._check_sizes(header_bytes, body_bytes)
        return header_bytes, body_bytes

    def _check_sizes(self, header_bytes: int, body_bytes: int) -> None:
        if header_bytes > self.max_header_bytes:
            raise FrameError(f"a header of {header_bytes} bytes; {self.max_header_bytes} are allowed")
        if body_bytes > self.max_body_bytes:
            raise FrameError(f"a body of {body_bytes} bytes; {self.max_body_bytes} are allowed")
