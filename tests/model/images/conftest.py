"""GME's image spec, and decoders that leave nothing running."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from model.images import Alpha, DecodedImage, ImageDecoder, ImageLimits, ImageSpec, Orientation, ResizeRule
from model.images.decoding import decode

GME = ImageSpec(
    patch_size=14,
    merge_size=2,
    resizes=(
        ResizeRule(min_tokens=4, max_tokens=16384, clamps_aspect=True),
        ResizeRule(min_tokens=256, max_tokens=1280),
    ),
)
LIMITS = ImageLimits()
TIMEOUT_S = 30.0
"""Far beyond what anything here takes, even on a machine that is busy with something else."""


def decode_here(
    data: bytes,
    *,
    spec: ImageSpec = GME,
    limits: ImageLimits = LIMITS,
    orientation: Orientation = Orientation.EXIF,
    alpha: Alpha = Alpha.WHITE,
) -> DecodedImage:
    """Decode in this process."""
    return decode(data, spec, limits, orientation=orientation, alpha=alpha)


def decode_processes() -> list[psutil.Process]:
    """Decode processes that these tests have started and not ended."""
    return [child for child in psutil.Process().children() if _is_decoder(child)]


def _is_decoder(process: psutil.Process) -> bool:
    try:
        return any("model.images.main" in argument for argument in process.cmdline())
    except psutil.ZombieProcess:
        return True


async def becomes(predicate: Callable[[], bool]) -> None:
    """Return when it is so. Of a process there is nothing to await but its numbers."""
    async with asyncio.timeout(TIMEOUT_S):
        while not predicate():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


@pytest.fixture
async def decoder() -> AsyncIterator[Callable[..., ImageDecoder]]:
    """Makes decoders; none may leave a process behind."""
    decoders: list[ImageDecoder] = []

    def make(*, spec: ImageSpec = GME, limits: ImageLimits = LIMITS, **options: Any) -> ImageDecoder:
        decoders.append(ImageDecoder(spec, limits, **{"num_processes": 1, **options}))
        return decoders[-1]

    yield make
    for one in decoders:
        await one.close()
    assert decode_processes() == []
