"""Random changes of training pictures: crop, flip, and LAVIS's RandAugment.

Every function takes an RGB PIL picture and a ``numpy.random.Generator`` and gives a picture; it draws from
that generator only, so that the same seed makes the same picture in whatever process.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BICUBIC = Image.Resampling.BICUBIC
TRIES = 10  # torchvision's, before the central crop
GREY = 128  # what a moved picture leaves behind (LAVIS)
EDGE = 2  # grey pixels put around a picture that is moved, for its edge to blend into
MOST = 10  # RandAugment's largest magnitude


@dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random area and shape, resized to ``size`` x ``size`` pixels by PIL: torchvision's sampling
    rule, LAVIS's numbers.

    ``scale``: the crop's part of the area; ``ratio``: its width to its height, drawn evenly in the logarithm.
    A shape that does not fit is drawn again, at most ten times; then the largest central crop within
    ``ratio`` is taken."""

    size: int
    scale: tuple = (0.5, 1.0)
    ratio: tuple = (3 / 4, 4 / 3)
    resample: int = BICUBIC

    def __call__(self, image, rng):
        left, top, width, height = self.box(image.width, image.height, rng)
        # first the crop: resize(box=…) would look beyond its edge
        crop = image.crop((left, top, left + width, top + height))
        return crop.resize((self.size, self.size), self.resample)

    def box(self, image_width, image_height, rng):
        """(left, top, width, height) of the crop in pixels."""
        for _ in range(TRIES):
            area = image_width * image_height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(*map(math.log, self.ratio)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= image_width and 0 < height <= image_height:
                top, left = rng.integers(image_height - height + 1), rng.integers(image_width - width + 1)
                return int(left), int(top), width, height
        width, height = image_width, image_height
        if image_width / image_height < self.ratio[0]:
            height = max(round(width / self.ratio[0]), 1)
        elif image_width / image_height > self.ratio[1]:
            width = max(round(height * self.ratio[1]), 1)
        return (image_width - width) // 2, (image_height - height) // 2, width, height


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """The picture or, with probability ``prob``, its mirror image."""

    prob: float = 0.5

    def __call__(self, image, rng):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < self.prob else image


@dataclass(frozen=True)
class RandAugment:
    """``num_ops`` of the ten changes in ``OPS``, drawn with replacement, each made with probability one half:
    LAVIS's RandomAugment(2, 5) in ``blip_image_train``, its recipe for Visual Genome.

    At magnitude 5 of 10 brightness and sharpness have factor 1 and change nothing; it is so in LAVIS.  LAVIS
    moves pixels with OpenCV, whose bilinear weights are multiples of 1/32; here they are exact, so that a
    sheared or rotated pixel may be off by a few levels.  The rest is PIL's own, which LAVIS's operations
    equal at magnitude 5; elsewhere its sharpness wraps around where PIL's is clipped."""

    num_ops: int = 2
    magnitude: float = 5

    def __call__(self, image, rng):
        for name in rng.choice(list(OPS), self.num_ops):
            if rng.random() <= 0.5:
                image = OPS[name](image, self.magnitude / MOST, rng)
        return image


def warp(image, matrix):
    """The picture moved by an affine map: the pixel at (x, y) goes to ``matrix`` (2 x 3) times (x, y, 1),
    pixel centres being whole numbers as in OpenCV.  Bilinear; outside the picture all is GREY, and its edge
    blends into that."""
    matrix = np.asarray(matrix, float)
    inverse = np.linalg.inv(matrix[:, :2])
    offset = 0.5 - inverse @ (0.5 + matrix[:, 2]) + EDGE  # to PIL pixel centres are halves
    parts = (*inverse[0], offset[0], *inverse[1], offset[1])
    bands = [
        band.convert("F").transform(
            image.size, Image.Transform.AFFINE, parts, Image.Resampling.BILINEAR, fillcolor=GREY
        )
        # "F": PIL cuts its 8-bit results off, OpenCV rounds
        for band in ImageOps.expand(image, EDGE, (GREY,) * 3).split()
    ]
    return Image.fromarray(np.rint(np.stack(bands, 2)).astype(np.uint8))


# one change each: picture, level from 0 to 1, generator


def _enhanced(kind):
    return lambda image, level, rng: kind(image).enhance(level * 1.8 + 0.1)


def _moved(matrix_of, most):
    """A move by up to ``most``, either way."""

    def move(image, level, rng):
        amount = level * most * (-1 if rng.random() > 0.5 else 1)
        return warp(image, matrix_of(amount, image))

    return move


def rotation(degrees, image):
    """Anticlockwise, about (width / 2, height / 2) as LAVIS has it: half a pixel beside the middle."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return (cos, sin, (1 - cos) * x - sin * y), (-sin, cos, sin * x + (1 - cos) * y)


OPS = {
    "Identity": lambda image, level, rng: image,
    "AutoContrast": lambda image, level, rng: ImageOps.autocontrast(image),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "Equalize": lambda image, level, rng: ImageOps.equalize(image),
    "ShearX": _moved(lambda amount, image: ((1, amount, 0), (0, 1, 0)), 0.3),
    "ShearY": _moved(lambda amount, image: ((1, 0, 0), (amount, 1, 0)), 0.3),
    "TranslateX": _moved(lambda amount, image: ((1, 0, amount * -1), (0, 1, 0)), 10),  # pixels
    "TranslateY": _moved(lambda amount, image: ((1, 0, 0), (0, 1, amount * -1)), 10),
    "Rotate": _moved(rotation, 30),  # degrees
}
