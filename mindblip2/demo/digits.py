"""Pictures of real handwriting with captions: what the embedded demo model was trained on, and what it is
examined with.

The 1,797 digits of scikit-learn (UCI "optical recognition of handwritten digits": scans by people, 8 x 8
pixels) are drawn in colour on coloured grounds, alone, in a row or in a column: "a red seven to the left of a
green two".  A scan belongs either to training or to the examination, and ten colour-digit pairs are never
drawn in training: a model that names one of those has put colour and digit together by itself.

    scene = sample_scene(np.random.default_rng(0))
    picture, text = render(scene), caption(scene)

B batch · S side of the picture in pixels · H W C height, width, channels
"""

import functools
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Bright on dark: brightness is shape and hue is colour, which a small ViT learns several times sooner than
# digits that may be
# darker or lighter than their ground.
COLOURS = {
    "red": (235, 50, 50),
    "orange": (250, 145, 30),
    "yellow": (250, 225, 60),
    "green": (60, 200, 80),
    "blue": (70, 125, 255),
    "purple": (170, 85, 230),
    "pink": (255, 150, 200),
    "white": (245, 245, 245),
}
GROUNDS = {
    "black": (15, 15, 18),
    "grey": (55, 55, 60),
    "navy": (15, 25, 75),
    "brown": (70, 42, 20),
    "teal": (10, 60, 62),
    "maroon": (75, 15, 30),
}
# One colour per digit, one or two digits per colour: every digit and every colour is still seen in training.
UNSEEN_PAIRS = tuple((digit, tuple(COLOURS)[(3 * digit + 1) % len(COLOURS)]) for digit in range(len(DIGITS)))
SEEN_PAIRS = tuple(
    (digit, colour)
    for digit in range(len(DIGITS))
    for colour in COLOURS
    if (digit, colour) not in UNSEEN_PAIRS
)
SIZE = 48  # pixels: the demo preset's image_size
# cells on a side; a digit takes one, so three fill a row or a column.  A patch of the demo's ViT sees one
# cell
GRID = 3
SPAN = 1.08  # size of a scan in cells
TINT = 12  # a colour is drawn up to this much off in each channel
EVERY = 5  # every fifth scan of each digit is for the examination only
MARGIN = 2  # empty pixels put around a scan, for strokes that touch its edge
COUNTS = (1, 2, 3)  # digits in a scene
LAYOUTS = ("row", "column")
DETAILS = ("all", "digit", "colour")
WILD = 0.2  # how much poses vary, in training and in the examination; 1 is the most
EXAM_SEED = 2026
SCENES = 500  # in the retrieval examination


@dataclass(frozen=True)
class Scene:
    """One to three digits on a ground, in reading order: left to right in a row, top to bottom in a column.

    ``pose`` seeds sizes, places, slants and tints, so a scene always gives the same pixels; ``wild`` (0 to 1)
    is how much they vary."""

    digits: tuple
    colours: tuple
    scans: tuple
    ground: str
    layout: str = "row"
    pose: int = 0
    wild: float = WILD


# ------------------------------------------------------------------------------------------------ the scans
@functools.lru_cache(maxsize=1)
def load_scans():
    """The scans and what they show: uint8 (1797, 8, 8) in 0 to 255, int (1797,).  Needs scikit-learn, no
    network."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the demo pictures are drawn from scikit-learn's digits: pip install mindblip2[demo]"
        ) from error
    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(int)


@functools.lru_cache(maxsize=1)
def split():
    """Indices of the scans for training and for the examination, both a tuple of arrays, one per digit."""
    labels = load_scans()[1]
    of_digit = [np.flatnonzero(labels == digit) for digit in range(len(DIGITS))]
    held_out = [np.arange(len(index)) % EVERY == EVERY - 1 for index in of_digit]
    return {
        "train": tuple(index[~out] for index, out in zip(of_digit, held_out)),
        "test": tuple(index[out] for index, out in zip(of_digit, held_out)),
    }


# ------------------------------------------------------------------------------------------------ scenes
def sample_scene(rng, part="train", count=None, pairs=None):
    """A scene of scans of one ``part`` of the split; ``count`` digits, or one to three.

    ``pairs``: the allowed (digit, colour) pairs, all seen ones by default."""
    pairs = SEEN_PAIRS if pairs is None else pairs
    count = count or one_of(COUNTS, rng)
    digits, colours = zip(*(one_of(pairs, rng) for _ in range(count)))
    scans = tuple(int(one_of(split()[part][digit], rng)) for digit in digits)
    return Scene(
        digits, colours, scans, one_of(tuple(GROUNDS), rng), one_of(LAYOUTS, rng), int(rng.integers(2**31))
    )


def one_of(values, rng):
    """One of ``values``, each as likely."""
    return values[int(rng.integers(len(values)))]


def held_out(kind, seed=EXAM_SEED):
    """Scenes of scans that training never saw, the same for the same seed; a tuple of :class:`Scene`.

    ``kind``: "digits", every held-out scan alone in a colour that its digit had in training; "pairs", every
    held-out scan alone in the one colour that its digit never had; "scenes", SCENES of two or three digits,
    no caption twice, any pair; "told", SCENES of one or two digits, any pair."""
    rng = np.random.default_rng(seed)
    if kind == "scenes":
        return _different_scenes(rng)
    if kind == "told":
        return tuple(sample_scene(rng, "test", 1 + i % 2, SEEN_PAIRS + UNSEEN_PAIRS) for i in range(SCENES))
    if kind not in ("digits", "pairs"):
        raise ValueError(f"kind = {kind!r}: expected 'digits', 'pairs', 'scenes' or 'told'")
    colours = {"digits": SEEN_PAIRS, "pairs": UNSEEN_PAIRS}[kind]
    return tuple(
        Scene(
            (digit,),
            (one_of([colour for one, colour in colours if one == digit], rng),),
            (int(scan),),
            one_of(tuple(GROUNDS), rng),
            pose=int(rng.integers(2**31)),
        )
        for digit, scans in enumerate(split()["test"])
        for scan in scans
    )


def _different_scenes(rng):
    scenes = {}
    while len(scenes) < SCENES:
        scene = sample_scene(rng, "test", 2 + len(scenes) % 2, SEEN_PAIRS + UNSEEN_PAIRS)
        scenes.setdefault(caption(scene), scene)
    return tuple(scenes.values())


# ------------------------------------------------------------------------------------------------ captions
def caption(scene, detail="all"):
    """What the scene shows, as ``BlipCaption`` leaves it.

    ``detail``: "all" names colours and digits ("a red seven"), "digit" ("a handwritten seven") and "colour"
    ("a red digit") only the one.  Text about one property teaches the text side that a pair has two."""
    if detail not in DETAILS:
        raise ValueError(f"detail = {detail!r}: expected one of {DETAILS}")
    things = [_thing(digit, colour, detail) for digit, colour in zip(scene.digits, scene.colours)]
    if len(things) == 1:
        return things[0]
    if len(things) == 2:
        return f" {'to the left of' if scene.layout == 'row' else 'above'} ".join(things)
    way = "left to right" if scene.layout == "row" else "top to bottom"
    return f"{things[0]}, {things[1]} and {things[2]} from {way}"


def questions(scene):
    """What may be asked about the scene: (question, answer) pairs.  Only what has one answer is asked: not
    the colour of the seven where there are two sevens."""
    asked = [("how many digits are there?", DIGITS[len(scene.digits)])]
    for digit, colour in zip(scene.digits, scene.colours):
        if scene.digits.count(digit) == 1:
            asked.append((f"what colour is the {DIGITS[digit]}?", colour))
        if scene.colours.count(colour) == 1:
            asked.append((f"which digit is {colour}?", DIGITS[digit]))
    return asked


def _thing(digit, colour, detail):
    words = (
        f"{'handwritten' if detail == 'digit' else colour} {'digit' if detail == 'colour' else DIGITS[digit]}"
    )
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_id(text):
    """The same number for the same caption: the image_id under which two samples are not each other's
    negatives."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


# ------------------------------------------------------------------------------------------------ drawing
def render(scene, size=SIZE):
    """The scene as a picture: uint8 (S, S, 3), the same pixels for the same scene."""
    rng = np.random.default_rng(scene.pose)
    canvas_SSC = np.broadcast_to(_tinted(GROUNDS[scene.ground], rng, scene.wild), (size, size, 3)).copy()
    for scan, colour, box in zip(scene.scans, scene.colours, _boxes(scene, rng)):
        ink_SS1 = _ink(scan, box, rng, scene.wild, size)
        canvas_SSC += ink_SS1 * (_tinted(COLOURS[colour], rng, scene.wild) - canvas_SSC)
    return np.round(canvas_SSC).astype(np.uint8)


def _tinted(rgb, rng, wild):
    return np.clip(np.asarray(rgb) + rng.uniform(-TINT, TINT, 3) * wild, 0, 255).astype(np.float32)


def _boxes(scene, rng):
    """Where each 8 x 8 scan goes: (centre x, centre y, width, height) in parts of the picture.  Neighbouring
    cells of the middle row or column; in its cell a scan may lie a little off the middle and be a little
    larger or smaller."""

    def about(low, high):
        return (low + high) / 2 + scene.wild * (high - low) * rng.uniform(-0.5, 0.5)

    count, boxes = len(scene.digits), []
    start, side = int(rng.integers(GRID - count + 1)), GRID // 2
    for i in range(count):
        column, row = (start + i, side) if scene.layout == "row" else (side, start + i)
        size = about(0.85, 1.15) * SPAN / GRID
        boxes.append(
            ((column + about(0.35, 0.65)) / GRID, (row + about(0.35, 0.65)) / GRID, 0.9 * size, 1.1 * size)
        )
    return boxes


def _ink(scan, box, rng, wild, size):
    """How much ink each pixel takes, float32 (S, S, 1) in 0 to 1: the scan enlarged, turned, slanted, thick
    or thin."""
    x, y, width, height = box
    turn, slant = rng.uniform(-0.2, 0.2, 2) * wild
    cos, sin = np.cos(turn), np.sin(turn)
    across, down = 8 / (width * size), 8 / (height * size)  # scan pixels per picture pixel
    a, b = across * (cos + slant * sin), across * (sin - slant * cos)
    d, e = -down * sin, down * cos
    middle = 4 + MARGIN
    affine = (a, b, middle - a * x * size - b * y * size, d, e, middle - d * x * size - e * y * size)
    drawn = _padded(scan).transform((size, size), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    low = 0.22 + 0.12 * wild * rng.uniform(-1, 1)
    ink = np.clip((np.asarray(drawn, np.float32) / 255 - low) / 0.45, 0, 1)
    return (ink * ink * (3 - 2 * ink))[..., None]


@functools.cache
def _padded(scan):
    return Image.fromarray(np.pad(load_scans()[0][scan], MARGIN))
