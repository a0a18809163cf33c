"""What is done to a training picture, in the words of LAVIS or of MindFormers' YAML files.

recipe("blip2_image_train", 224)                                   LAVIS's name
recipe([{"type": "Resize", "size": [224, 224]}, …], 224)           MindFormers' list
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Annotated

from PIL import Image

from mindblip2.config import CLIP_MEAN, CLIP_STD
from mindblip2.config.schema import ConfigError, Factor, Fraction, Natural, Pixels, Positive, Range, argument
from mindblip2.data.images.color_conversion import check_size
from mindblip2.data.images.random_transforms import MOST, RandAugment, RandomHorizontalFlip, RandomResizedCrop
from mindblip2.data.images.transforms import normalize, resize, to_chw

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "linear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
VISUAL_GENOME = re.compile(r"(^|[/\\_.-])(vg|visual[-_]?genome)([/\\_.-]|$)", re.IGNORECASE)
# steps of MindFormers between kinds of arrays: a recipe has PIL pictures and ends with an array
ARRAYS = ("ToPIL", "ToTensor")


@dataclass(frozen=True)
class ImageAugmentation:
    """Steps on RGB PIL pictures, each called with the picture and a ``numpy.random.Generator``; then an
    array, normalised."""

    steps: tuple
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD

    def __call__(self, image, rng):
        """RGB PIL picture and generator to float32 (3, S, S)."""
        for step in self.steps:
            image = step(image, rng)
        return normalize(to_chw(image), self.mean, self.std)


@dataclass(frozen=True)
class Resize:
    """To a square of ``size`` pixels (a pair says so too), or with one number, as in MindFormers, the shorter
    side to it.  Raises ImageError where that would make a picture too large."""

    size: int
    square: bool = True
    resample: int = Image.Resampling.BICUBIC

    def __call__(self, image, rng=None):
        if self.square:
            return resize(image, self.size, self.resample)
        scale = self.size / min(image.size)
        size = tuple(max(self.size, int(side * scale)) for side in image.size)
        # a line of one pixel
        check_size(
            size, f"a picture of {image.width} x {image.height}, its shorter side resized to {self.size},"
        )
        return image.resize(size, self.resample)


@dataclass(frozen=True)
class CenterCrop:
    """The middle ``size`` x ``size`` pixels of a picture that is not smaller."""

    size: int

    def __call__(self, image, rng=None):
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def recipe(words, size, mean=CLIP_MEAN, std=CLIP_STD):
    """The :class:`Recipe` for pictures of ``size`` pixels that LAVIS's name or MindFormers' list of dicts
    describes.

    Raises ConfigError for an unknown name, step or option, and where the last size is not ``size``."""
    if isinstance(words, str):
        if words not in NAMED:
            raise ConfigError(
                f"transforms: no recipe {words!r}; there is: {', '.join(NAMED)}" + _near(words, NAMED)
            )
        return ImageAugmentation(NAMED[words](size), tuple(mean), tuple(std))
    norm = {"mean": tuple(mean), "std": tuple(std)}
    steps = []
    for entry in words:
        kind, options = _taken_apart(entry)
        if kind == "Normalize":
            norm |= {
                key: argument(RANGES[key], options[key], f"transforms: Normalize {key}")
                for key in norm.keys() & options.keys()
            }
        elif kind not in ARRAYS:
            steps.append(_made(kind, options))
    last = next((step for step in reversed(steps) if hasattr(step, "size")), None)
    if last is None or last.size != size or not getattr(last, "square", True):
        raise ConfigError(
            f"transforms end with {last}, which does not make squares of "
            "processor.image_processor.image_size = "
            f"{size} pixels: end them with a crop or a Resize to [{size}, {size}]"
        )
    return ImageAugmentation(tuple(steps), **norm)


def recipes(transforms, names, size, mean=CLIP_MEAN, std=CLIP_STD):
    """One :class:`Recipe` for each of the sets ``names``, from ``train_dataset.transforms``.

    ``transforms``: MindFormers' list of dicts, or one LAVIS name, for all sets; a LAVIS name for each set; or
    nothing, which is what LAVIS pretrained with: blip_image_train for what is named after Visual Genome (VG),
    blip2_image_train for the others."""
    transforms = list(transforms or [default(name) for name in names])
    if not all(isinstance(one, str) for one in transforms):
        return (recipe(transforms, size, mean, std),) * len(names)
    if len(transforms) not in (1, len(names)):
        raise ConfigError(
            f"transforms names {len(transforms)} recipes for {len(names)} sets: expected one for all or one "
            "for each"
        )
    made = tuple(recipe(one, size, mean, std) for one in transforms)
    return made if len(made) == len(names) else made * len(names)


def default(name):
    """LAVIS's recipe for the set that an annotation file is named after: its name and the two folders above
    it count."""
    return (
        "blip_image_train"
        if VISUAL_GENOME.search("/".join(re.split(r"[/\\]", name)[-3:]))
        else "blip2_image_train"
    )


NAMED = {
    "blip2_image_train": lambda size: (RandomResizedCrop(size), RandomHorizontalFlip()),
    "blip_image_train": lambda size: (RandomResizedCrop(size), RandomHorizontalFlip(), RandAugment()),
    "blip_image_eval": lambda size: (Resize(size),),
}
STEPS = {
    "RandomResizedCrop": RandomResizedCrop,
    "RandomHorizontalFlip": RandomHorizontalFlip,
    "RandAugment": RandAugment,
    "Resize": Resize,
    "CenterCrop": CenterCrop,
}
RANGES = {
    "size": Pixels,
    "scale": tuple[Factor, Factor],
    "ratio": tuple[Positive, Positive],
    "prob": Fraction,
    "num_ops": Natural,
    "magnitude": Annotated[float, Range(0, MOST)],
    "mean": tuple[Fraction, Fraction, Fraction],
    "std": tuple[Positive, Positive, Positive],
}
OPTIONS = {
    "Normalize": ("mean", "std", "is_hwc"),
    "ToPIL": (),
    "ToTensor": (),
    "Resize": ("size", "interpolation"),
    "RandomResizedCrop": ("size", "scale", "ratio", "interpolation"),
}


def _taken_apart(entry):
    """(type, options) of one of MindFormers' dicts; options that it has not are errors."""
    if not isinstance(entry, dict) or entry.get("type") not in (known := (*STEPS, "Normalize", *ARRAYS)):
        kind = entry.get("type") if isinstance(entry, dict) else entry
        raise ConfigError(f"transforms: no step {kind!r}; there is: {', '.join(known)}" + _near(kind, known))
    options = {key: value for key, value in entry.items() if key != "type"}
    kind = entry["type"]
    allowed = OPTIONS[kind] if kind in OPTIONS else [field.name for field in dataclasses.fields(STEPS[kind])]
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise ConfigError(
            f"transforms: {kind} has no option {unknown[0]!r}; it has: {', '.join(allowed) or 'none'}"
        )
    return kind, options


def _made(kind, options):
    if "interpolation" in options:
        name = options.pop("interpolation")
        if name not in FILTERS:
            raise ConfigError(
                f"transforms: {kind} interpolation = {name!r}: expected one of {', '.join(FILTERS)}"
            )
        options["resample"] = FILTERS[name]
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if isinstance(options.get("size"), tuple):
        if len(set(options["size"])) != 1:
            raise ConfigError(
                f"transforms: {kind} size = {list(options['size'])}: BLIP-2 pictures are square"
            )
        options["size"] = options["size"][0]
    elif kind == "Resize":
        options["square"] = False
    for key in RANGES.keys() & options.keys():
        options[key] = argument(RANGES[key], options[key], f"transforms: {kind} {key}")
        if isinstance(options[key], tuple) and options[key][0] > options[key][1]:
            raise ConfigError(
                f"transforms: {kind} {key} = {list(options[key])}: expected the smaller number first"
            )
    try:
        return STEPS[kind](**options)
    except TypeError as error:
        raise ConfigError(f"transforms: {kind}: {error}") from None


def _near(word, known):
    near = difflib.get_close_matches(str(word), known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""
