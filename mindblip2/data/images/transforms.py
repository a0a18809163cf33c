"""Pictures to arrays, as torchvision does it on PIL pictures in LAVIS's processors.

PIL's filter is antialiased (its support grows with the reduction); the bicubic resize of
``mindspore.dataset`` on arrays is not, and gives visibly other pixels.  Hence every geometric step works on a
PIL picture.  Augmentations are to take their random generator as an argument and to stand with the first
group.

# H W height, width of the picture in pixels · S side of the model's square input
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mindblip2.config import CLIP_MEAN, CLIP_STD

# PIL picture → PIL picture


def resize(image, size, resample=Image.Resampling.BICUBIC):
    """RGB picture stretched to exactly ``size`` x ``size`` pixels, without a crop.

    Bit-equal to torchvision's ``Resize((size, size), BICUBIC)`` on a PIL picture.  Raises ValueError for
    another mode than RGB: PIL resizes palette pictures by nearest neighbour whatever filter is asked for.
    """
    if image.mode != "RGB":
        raise ValueError(
            f"resize expects an RGB picture, got mode {image.mode}: "
            "open it with mindblip2.load_image, which converts"
        )
    return image.resize((size, size), resample)


# PIL picture → array → array


def to_chw(image):
    """RGB picture (H, W) to float32 array (3, H, W) in [0, 1] (torchvision's ``ToTensor``)."""
    image_HWC = np.asarray(image, np.uint8)
    return np.ascontiguousarray(image_HWC.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def normalize(image_CHW, mean=CLIP_MEAN, std=CLIP_STD):
    """``(x - mean) / std`` per channel in float32; (3, H, W) or (B, 3, H, W) to the same shape."""
    mean, std = (np.asarray(values, np.float32).reshape(3, 1, 1) for values in (mean, std))
    return (image_CHW - mean) / std


# chains


@dataclass(frozen=True)
class EvalTransform:
    """LAVIS's ``BlipImageEvalProcessor``: resize to a square, scale to [0, 1], normalise."""

    image_size: int = 224
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD

    def __call__(self, image):
        """RGB PIL picture to normalised float32 array (3, S, S)."""
        return normalize(to_chw(resize(image, self.image_size)), self.mean, self.std)
