"""What a model wants of an image, and what a server allows of one. Plain data, without Pillow."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class Orientation(StrEnum):
    """Which way up an image is taken."""

    EXIF = "exif"
    """As its EXIF tag says, the way people see it."""
    STORED = "stored"
    """As its pixels are stored, whatever the tag says."""


class Alpha(StrEnum):
    """What stands behind transparent pixels."""

    WHITE = "white"
    DROP = "drop"
    """The colours that are stored under the transparency, as ``Image.convert("RGB")`` leaves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRule:
    """One smart resize: both sides become multiples of a token's side, the area fits the bounds."""

    min_tokens: int
    """Smaller images are scaled up to so many tokens."""
    max_tokens: int
    """Larger images are scaled down to so many tokens."""
    clamps_aspect: bool = False
    """Images more elongated than ``ImageSpec.max_aspect_ratio`` are squeezed to it, not refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """How a model wants its images. A token is a square of ``merge_size`` by ``merge_size`` patches."""

    patch_size: int
    """Pixels on a side of a patch."""
    merge_size: int
    """Patches on a side of what becomes one token."""
    resizes: tuple[ResizeRule, ...]
    """Applied one after the other."""
    max_aspect_ratio: float = 200.0
    """Long side over short side."""

    @property
    def token_side(self) -> int:
        """Pixels on a side of what becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def max_tokens(self) -> int:
        """The most tokens that one image becomes."""
        return self.resizes[-1].max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a decoder accepts of an image file, and what one file may cost."""

    max_pixels: int = 40_000_000
    """Formats that take more memory for each pixel have a lower limit where ``memory_bytes`` asks for it."""
    max_side: int = 65_535
    """Pixels; as the format of JPEG ends (ITU-T T.81, B.2.2)."""
    min_side: int = 3
    """Pixels. Below it there is nothing to see, and much to enlarge (CVE-2026-22773 is one pixel)."""
    max_aspect_ratio: float = 200.0
    """Long side over short side."""
    max_scans: int = 32
    """Times that a JPEG goes over its picture; libjpeg's progressive files do it 10 times. At 28 million
    pixels a scan that adds nothing has 48 bytes and takes 0.04 s."""
    decode_timeout_s: float = 10.0
    """A decode that takes longer is killed. 40 million pixels take some 2 s on one core."""
    memory_bytes: int = 290_000_000
    """Address space that a decode may take beyond what its process holds when idle."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodedImage:
    """An image at the size that the model reads."""

    pixels: npt.NDArray[np.uint8]
    """``[H, W, 3]``, RGB."""
    num_tokens: int
    """Tokens that the model makes of it."""
