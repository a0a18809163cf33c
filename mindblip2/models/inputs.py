"""What users hand to the public calls of a model, as the Tensors that it computes with.

Arrays of NumPy and of torch are taken as they are; pictures and texts go through the processor that belongs
to the model's configuration, as in a pipeline.

B batch · S side of a picture · T text
"""

import numpy as np
from mindspore import Tensor


def array(value):
    """An array of NumPy from one of torch, anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16


def tensor(value):
    """A Tensor, float32 or int32, from an array of NumPy or torch, also within a tuple; anything else as it
    is."""
    if isinstance(value, tuple):
        return tuple(map(tensor, value))
    value = array(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    return Tensor(np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int32))


def pictures(model, image):
    """Pictures (B, 3, S, S) float32 from such an array, or from what ``Blip2ImageProcessor`` takes: paths,
    PIL pictures, arrays of bytes.  Raises ValueError for floats of another shape, and for pictures where no
    processor is known; as the processor."""
    image = array(image)
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray) and image.dtype.kind == "f":
        if image.ndim != 4:
            raise ValueError(
                f"image is {image.dtype} {image.shape}: expected float32 (B, 3, S, S), normalised, as "
                "Blip2Processor makes it"
            )
        return tensor(image)
    if isinstance(image, dict) or image is None:
        raise ValueError(
            f"image is {_name(image)}: expected float32 (B, 3, S, S) of Blip2Processor, or a picture or a "
            "list of them"
        )
    return processor(model, "pictures").image_processor(image)


def token_ids(model, text):
    """Token ids (B, T) int32 from such an array or list, or from a text or a list of texts by the model's
    tokenizer.  Raises ValueError for anything else, and for texts where no tokenizer is known; as the
    tokenizer."""
    if texts(text):
        return processor(model, "texts")(text=[text] if isinstance(text, str) else list(text))["input_ids"]
    ids = array(text)
    if (
        isinstance(ids, (list, tuple))
        and all(isinstance(row, (list, tuple)) for row in ids)
        and len({*map(len, ids)}) == 1
    ):
        ids = np.array(ids)
    if isinstance(ids, Tensor) or (isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.ndim == 2):
        return tensor(ids)
    got = f"{ids.dtype} {ids.shape}" if isinstance(ids, np.ndarray) else _name(ids)
    raise ValueError(
        f"input_ids is {got}: expected token ids (B, T) int32, as Blip2Processor makes them, or a list of "
        "texts"
    )


def texts(value):
    """Whether this is a text or a list of texts."""
    return isinstance(value, str) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, str) for one in value)
    )


def processor(model, what):
    """The processor of a model that is given ``what`` instead of arrays.  Raises ValueError where nothing
    says which it is."""
    from mindblip2.data.own_processor import (
        own_processor,  # here, since a model that is given arrays needs no tokenizer
    )

    key = (model.config.preset, id(model.config))
    if getattr(model, "own", (None, None))[0] != key:
        try:
            model.own = key, own_processor(model)
        except ValueError as error:
            if model.config.preset:
                raise
            raise ValueError(
                f"{what} were given, but this model's configuration was made in Python, so nothing says "
                "which processor is "
                "its own: give image as float32 (B, 3, S, S) and input_ids as token ids (B, T) int32, both "
                "made by "
                "Blip2Processor.from_pretrained(name)"
            ) from error
    return model.own[1]


def unpacked(samples, names):
    """The values of ``samples``, a dict of LAVIS or of ``Blip2Processor``: ``names`` maps each key that may
    be there to the argument that it is.  Returns {argument: value}.  Raises ValueError for another key, a
    missing picture, and an argument given twice."""
    unknown = [key for key in samples if key not in names]
    if unknown or "image" not in samples:
        raise ValueError(
            f"samples has the keys {', '.join(map(repr, samples)) or 'none'}: expected 'image'"
            + "".join(f", {key!r}" for key in names if key != "image")
        )
    found = {}
    for key, value in samples.items():
        if names[key] in found:
            raise ValueError(
                f"samples has {' and '.join(repr(one) for one in samples if names[one] == names[key])}, "
                "which are the same "
                "argument: give one of them"
            )
        found[names[key]] = value
    return found


def _name(value):
    return repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
