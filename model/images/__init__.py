"""From an image file to the pixels that a model reads."""

from model.images.spec import Alpha, DecodedImage, ImageSpec, Orientation, ResizeRule

__all__ = ["Alpha", "DecodedImage", "ImageSpec", "Orientation", "ResizeRule"]
