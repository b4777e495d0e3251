"""How the answers of all dialects are made: off the event loop where they are large."""

import asyncio
from collections.abc import Callable

import msgspec

from app.outputs import INLINE_BYTES

_encoder = msgspec.json.Encoder()


async def encoded(build: Callable[[], msgspec.Struct], *, num_bytes: float) -> bytes:
    """Build an answer and encode it, in a thread if it will have more than ``INLINE_BYTES``."""

    def encode() -> bytes:
        return _encoder.encode(build())

    return encode() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(encode)
