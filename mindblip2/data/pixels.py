"""Pixel formats to 8-bit RGB: PIL modes and arrays.

Where PIL's own ``convert("RGB")`` is sound it is used, because LAVIS uses it: alpha is dropped (the colour under it
shows, no background is blended in), CMYK is converted without a colour profile.  JPEG's inverted (Adobe) CMYK is turned
by PIL's reader.  The exceptions are the pictures deeper than 8 bits, which PIL clips to white; see :func:`to_levels`.
"""
import numpy as np
from PIL import Image

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
CHANNELS = (1, 3, 4)


class ImageError(ValueError):
    """A picture that cannot be used; the message says what, got, expected, and the next step."""


def to_rgb(picture, name):
    """A PIL picture of any mode to a new RGB picture of the same size.

    ``name`` is what messages call it.  Raises ImageError for a picture without pixels, a mode that PIL cannot
    convert, and deep pixels out of range.
    """
    if 0 in picture.size:
        raise ImageError(f"{name} has no pixels: its size is {picture.size[0]} x {picture.size[1]}")
    if picture.mode in DEEP_MODES:
        return array_to_rgb(_deep_pixels(picture), name)
    if picture.mode == "P":
        picture = picture.convert("RGBA")   # same colours as straight to RGB, without PIL's warning on transparency
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name}: {error}; convert the picture to RGB first") from error


def array_to_rgb(array, name):
    """An array of pixels, (H, W) or (H, W, 1 | 3 | 4), to an RGB picture; a fourth channel is alpha and dropped.

    Raises ImageError for another shape, no pixels, or values outside :func:`to_levels`.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ImageError(f"{name} has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4){_advice(array)}")
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels: its shape is {array.shape}")
    levels = np.ascontiguousarray(to_levels(array, name))
    return Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels).convert("RGB")


def to_levels(array, name):
    """Pixel values of any depth to 8-bit levels (uint8), same shape.

    uint8 stays; bool gives 0 and 255.  uint16 keeps the high byte, as PIL itself reads 16-bit RGB files; its
    conversion of 16-bit grey clips at 255 instead, which is nearly all white.  Floats in [0, 1] are scaled by 255 and
    rounded; floats that are whole numbers in 0..255 are taken as levels.  Anything else is an ImageError instead of a
    guess.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:      # of either byte order
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind == "f" and 0 <= array.min() and array.max() <= 1:
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if array.dtype.kind == "f" and 0 <= array.min() and array.max() <= 255 and (array == np.rint(array)).all():
        return array.astype(np.uint8)
    span = f" from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else ""
    raise ImageError(f"{name} holds {array.dtype} values{span}; expected uint8, uint16, floats in [0, 1] or whole "
                     "floats in 0..255: scale it to 0..255 and use .astype(np.uint8); a picture that is normalised "
                     "already goes to the image processor with normalized=True")


def _deep_pixels(picture):
    """The array of a deep picture; mode "I" holds the 16 bits of PGM files (older PIL: of PNG) in 32, so it is
    narrowed."""
    array = np.asarray(picture)
    fits = picture.mode == "I" and array.min() >= 0 and array.max() <= 65535
    return array.astype(np.uint16) if fits else array


def _advice(array):
    if array.ndim == 4:
        return ": this is a batch; pass it to the image processor, or its pictures one by one"
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        return ": this looks channel-first; use array.transpose(1, 2, 0)"
    return ""
