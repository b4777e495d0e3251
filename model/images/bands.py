"""Pieces of a picture that can be worked on one by one, and where they are stored: pure geometry.

Rule 1: the pieces give what the whole would give. Pillow resizes in two passes, one along the rows and one
along the columns, with 8 bits between them; a pass takes each row, or column, by itself.
"""

from collections.abc import Iterator
from typing import NamedTuple

from PIL.Image import Transpose

from model.images.sizes import Size

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, as Pillow orders them."""


class Band(NamedTuple):
    """A piece of an upright picture, as high or as wide as the whole."""

    box: Box
    new_size: Size
    """After the first pass."""


def first_pass_size(size: Size, new_size: Size) -> Size:
    """Size of the whole picture between the two passes of a resize."""
    if _is_vertical_first(size, new_size):
        return size[0], new_size[1]
    return new_size[0], size[1]


def first_pass_bands(size: Size, new_size: Size, *, max_pixels: int) -> Iterator[Band]:
    """Cut a picture for the first pass of a resize, into bands of up to ``max_pixels`` or of a single row."""
    (width, height), (new_width, new_height) = size, new_size
    if _is_vertical_first(size, new_size):
        step = max(1, max_pixels // height)
        for left in range(0, width, step):
            right = min(left + step, width)
            yield Band((left, 0, right, height), (right - left, new_height))
    else:
        step = max(1, max_pixels // width)
        for upper in range(0, height, step):
            lower = min(upper + step, height)
            yield Band((0, upper, width, lower), (new_width, lower - upper))


def _is_vertical_first(size: Size, new_size: Size) -> bool:
    # ImagingResampleInner in Resample.c of Pillow 13.0. Before 13 the horizontal pass was always first, and
    # a third of a picture's values came out different by one.
    fewer_rows, fewer_columns = size[1] - new_size[1], size[0] - new_size[0]
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


class Turn(NamedTuple):
    """How stored pixels become an upright picture."""

    method: Transpose | None
    swaps_axes: bool = False
    mirrors_x: bool = False
    """The picture begins where what is stored has its last column."""
    mirrors_y: bool = False
    """The same for rows."""

    def upright_size(self, stored_size: Size) -> Size:
        """Size of the picture when it is upright."""
        width, height = stored_size
        return (height, width) if self.swaps_axes else (width, height)

    def stored_box(self, stored_size: Size, upright_box: Box) -> Box:
        """Where a piece of the upright picture is stored."""
        width, height = stored_size
        left, upper, right, lower = upright_box
        if self.swaps_axes:
            left, upper, right, lower = upper, left, lower, right
        if self.mirrors_x:
            left, right = width - right, width - left
        if self.mirrors_y:
            upper, lower = height - lower, height - upper
        return left, upper, right, lower


UPRIGHT = Turn(None)
TURNS = {
    2: Turn(Transpose.FLIP_LEFT_RIGHT, mirrors_x=True),
    3: Turn(Transpose.ROTATE_180, mirrors_x=True, mirrors_y=True),
    4: Turn(Transpose.FLIP_TOP_BOTTOM, mirrors_y=True),
    5: Turn(Transpose.TRANSPOSE, swaps_axes=True),
    6: Turn(Transpose.ROTATE_270, swaps_axes=True, mirrors_y=True),
    7: Turn(Transpose.TRANSVERSE, swaps_axes=True, mirrors_x=True, mirrors_y=True),
    8: Turn(Transpose.ROTATE_90, swaps_axes=True, mirrors_x=True),
}
"""By the value of EXIF's Orientation (CIPA DC-008, 4.6.5)."""
