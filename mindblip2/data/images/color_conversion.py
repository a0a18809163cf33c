"""Pixel formats to 8-bit RGB: PIL modes, arrays, tensors.

Where PIL's own ``convert("RGB")`` is sound it is used, because LAVIS uses it: alpha is dropped (the colour
under it shows, no background is blended in) unless "white" is asked for, CMYK is converted without a colour
profile.  JPEG's inverted (Adobe) CMYK is turned by PIL's reader.  The exceptions are the pictures deeper than
8 bits, which PIL clips to white; see :func:`to_levels`.
"""

from typing import Any

import numpy as np
from PIL import Image

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
# their mode "I" holds 16 bits: older PIL opens 16-bit PNG so, all of them 16-bit PGM
DEEP_FORMATS = ("PNG", "PPM")
CHANNELS = (1, 3, 4)
ALPHA = ("drop", "white")  # what becomes of transparency


class ImageError(ValueError):
    """A picture that cannot be used; the message says what, got, expected, and the next step."""


def to_rgb(picture: Image.Image, name: str, alpha: str = "drop") -> Image.Image:
    """A PIL picture of any mode to a new RGB picture of the same size.

    ``name`` is what messages call it.  ``alpha``: "drop", or "white" for a white background.  Raises
    ImageError for a picture without pixels, a mode that PIL cannot convert, and deep pixels out of range.
    """
    if 0 in picture.size:
        raise ImageError(f"{name} has no pixels: its size is {picture.size[0]} x {picture.size[1]}")
    if picture.mode in DEEP_MODES:
        values = np.asarray(picture)
        sixteen = (
            picture.mode.startswith("I;16") if picture.format not in DEEP_FORMATS else picture.mode != "F"
        )
        if picture.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)
        return _picture_of(to_levels(values, name, sixteen and picture.format is not None), alpha)
    transparent = "A" in picture.getbands() or picture.info.get("transparency") is not None
    try:
        if alpha == "white" and transparent:
            return _on_white(picture.convert("RGBA"))
        if picture.mode == "P":
            # same colours as straight to RGB, without PIL's warning on transparency
            picture = picture.convert("RGBA")
        return picture.convert("RGB")
    except ValueError as error:
        raise ImageError(f"{name}: {error}; convert the picture to RGB first") from error


def array_of(source: Any) -> np.ndarray | None:
    """The NumPy array of an array or tensor of whatever library, without importing it; None for what is
    neither.

    Raises ImageError for a tensor that has no values here, such as one on PyTorch's "meta" device."""
    if isinstance(source, np.ndarray):
        return source
    try:
        if hasattr(source, "asnumpy"):  # MindSpore
            return source.asnumpy()
        # PyTorch, on whatever device, with or without gradients
        if hasattr(source, "detach") and hasattr(source, "cpu"):
            tensor = source.detach().cpu()
            return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
        if hasattr(source, "__array__") and not isinstance(source, Image.Image):
            return np.asarray(source)
    except Exception as error:  # each library has its own
        raise ImageError(
            f"the {type(source).__module__}.{type(source).__name__} gives no values ({error}); pass a NumPy "
            "array"
        ) from error
    return None


def array_to_rgb(array: np.ndarray, name: str, alpha: str = "drop") -> Image.Image:
    """An array of pixels to an RGB picture: (H, W), (H, W, 1 | 3 | 4), or (1 | 3 | 4, H, W) where the last
    axis cannot be channels.

    A fourth channel is alpha: dropped, or with ``alpha`` "white" put on white.  Raises ImageError for another
    shape, no pixels, or values outside :func:`to_levels`.
    """
    if array.ndim == 3 and array.shape[2] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ImageError(
            f"{name} has shape {array.shape}; expected (H, W), (H, W, 3), (H, W, 4) or (3, H, W)"
            + (
                ": this is a batch; pass it to the image processor, or its pictures one by one"
                if array.ndim == 4
                else ""
            )
        )
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels: its shape is {array.shape}")
    return _picture_of(to_levels(array, name), alpha)


def to_levels(array: np.ndarray, name: str, sixteen_bits: bool = False) -> np.ndarray:
    """Pixel values of any depth to 8-bit levels (uint8), same shape.

    uint8 stays; bool gives 0 and 255.  uint16 up to 255 are levels that someone holds in a wider type, as
    LAVIS takes them; beyond, or with ``sixteen_bits`` (the file says so), they are 16 bits deep and keep the
    high byte, as PIL itself reads 16-bit RGB files; its conversion of 16-bit grey clips at 255 instead, which
    is nearly all white.  PIL's mode "I" comes here as uint16.  Floats in [0, 1] are scaled by 255 and
    rounded; floats that are whole numbers in 0..255 are taken as levels.  Anything else is an ImageError
    instead of a guess.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return (array >> 8 if sixteen_bits or array.max() > 255 else array).astype(np.uint8)
    if array.dtype.kind == "f" and 0 <= array.min() and array.max() <= 1:
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    if (
        array.dtype.kind == "f"
        and 0 <= array.min()
        and array.max() <= 255
        and (array == np.rint(array)).all()
    ):
        return array.astype(np.uint8)
    span = f" from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else ""
    raise ImageError(
        f"{name} holds {array.dtype} values{span}; expected uint8, uint16, floats in [0, 1] or whole "
        "floats in 0..255: scale it to 0..255 and use .astype(np.uint8); a picture that is normalised "
        "already goes to the image processor with normalized=True"
    )


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises ImageError for (width, height) of more pixels than PIL opens: twice PIL.Image.MAX_IMAGE_PIXELS,
    179 million by default."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise ImageError(
            f"{name} would have {size[0]} x {size[1]} pixels, expected at most {2 * limit:,}; scale it down, "
            "or if you trust "
            "it, raise PIL.Image.MAX_IMAGE_PIXELS"
        )


def _picture_of(levels, alpha):
    levels = np.ascontiguousarray(levels)
    picture = Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels)
    return _on_white(picture) if alpha == "white" and picture.mode == "RGBA" else picture.convert("RGB")


def _on_white(picture):
    """An RGBA picture before a white background, as transformers."""
    return Image.alpha_composite(Image.new("RGBA", picture.size, (255,) * 4), picture).convert("RGB")
