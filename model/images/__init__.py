"""From an image file to the pixels that a model reads. Importing this never loads Pillow.

Files are decoded in processes of their own (``ImageDecoder``); which size an image gets, and how many tokens
that is, is known from its width and height alone.
"""

from model.images.pool import DecoderStatistics, ImageDecoder
from model.images.sizes import target_sizes
from model.images.spec import Alpha, DecodedImage, ImageLimits, ImageSpec, Orientation, ResizeRule

__all__ = [
    "Alpha",
    "DecodedImage",
    "DecoderStatistics",
    "ImageDecoder",
    "ImageLimits",
    "ImageSpec",
    "Orientation",
    "ResizeRule",
    "target_sizes",
]
