"""Crops by torchvision's rule, flips, and RandAugment's ten operations, against values worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.images.random_transforms import (
    GREY,
    OPS,
    RandAugment,
    RandomHorizontalFlip,
    RandomResizedCrop,
    rotation,
    warp,
)


class Draws:
    """A generator that gives what it was told."""

    def __init__(self, uniform=(), integers=(), random=(), choice=()):
        self.values = {
            "uniform": iter(uniform),
            "integers": iter(integers),
            "random": iter(random),
            "choice": iter(choice),
        }
        self.asked = []

    def __getattr__(self, name):
        def draw(*arguments):
            self.asked.append((name, *arguments))
            return next(self.values[name])

        return draw


def pixels(image):
    return np.asarray(image, int)


def grey(rows):
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, 2))


# ------------------------------------------------------------------------------------------------ crops
def test_a_crop_follows_torchvisions_rule():
    draws = Draws(uniform=[0.5, math.log(1.2)], integers=[3, 11])
    left, top, width, height = RandomResizedCrop(224).box(100, 80, draws)
    assert (width, height) == (round(math.sqrt(4000 * 1.2)), round(math.sqrt(4000 / 1.2))) == (69, 58) and (
        left,
        top,
    ) == (11, 3)
    assert draws.asked == [
        ("uniform", 0.5, 1.0),
        ("uniform", math.log(3 / 4), math.log(4 / 3)),
        ("integers", 80 - 58 + 1),
        ("integers", 100 - 69 + 1),
    ]


def test_a_shape_that_does_not_fit_is_drawn_again():
    # 1.0 of a square at 4:3 is too wide
    draws = Draws(uniform=[1.0, math.log(4 / 3), 0.6, 0.0], integers=[0, 0])
    assert RandomResizedCrop(8).box(100, 100, draws) == (0, 0, 77, 77)


@pytest.mark.parametrize(
    "size, box",
    [((400, 100), (133, 0, 133, 100)), ((30, 100), (0, 30, 30, 40)), ((100, 90), (0, 0, 100, 90))],
)
def test_after_ten_tries_the_middle_is_taken(size, box):
    draws = Draws(uniform=[100.0, 0.0] * 10)
    assert RandomResizedCrop(8).box(*size, draws) == box


def test_crops_are_of_the_stated_areas_and_shapes(noise):
    rng, crop = np.random.default_rng(0), RandomResizedCrop(16)
    boxes = np.array([crop.box(250, 200, rng) for _ in range(4000)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 50000, boxes[:, 2] / boxes[:, 3]
    assert 0.495 < area.min() < 0.51 and 0.95 < area.max() <= 1 and 0.74 < ratio.min() and ratio.max() < 1.35
    assert (
        (boxes[:, 0] + boxes[:, 2] <= 250).all()
        and (boxes[:, 1] + boxes[:, 3] <= 200).all()
        and boxes.min() >= 0
    )
    # anywhere, so on average in the middle
    assert abs(boxes[:, 0].mean() - (250 - boxes[:, 2].mean()) / 2) < 2
    small = np.array([RandomResizedCrop(16, (0.08, 1.0)).box(250, 200, rng) for _ in range(500)])
    # control: ImageNet's scale is seen
    assert (small[:, 2] * small[:, 3] / 50000).min() < 0.2


def test_a_crop_is_cut_first_and_resized_bicubically(noise):
    rng = np.random.default_rng(3)
    left, top, width, height = RandomResizedCrop(12).box(*noise.size, np.random.default_rng(3))
    made = RandomResizedCrop(12)(noise, rng)
    cut = Image.fromarray(np.asarray(noise)[top : top + height, left : left + width])
    assert (pixels(made) == pixels(cut.resize((12, 12), Image.Resampling.BICUBIC))).all()
    box = (left, top, left + width, top + height)
    # control: looks beyond the crop
    assert (pixels(made) != pixels(noise.resize((12, 12), Image.Resampling.BICUBIC, box))).any()


def test_a_flip_mirrors_half_of_the_pictures(noise):
    flip = RandomHorizontalFlip()
    assert (pixels(flip(noise, Draws(random=[0.49]))) == pixels(noise)[:, ::-1]).all()
    assert (pixels(flip(noise, Draws(random=[0.5]))) == pixels(noise)).all()


# ------------------------------------------------------------------------------------------------ RandAugment
def test_two_operations_are_drawn_and_each_made_half_of_the_time(noise):
    # made, to the right; not made
    draws = Draws(choice=[["TranslateX", "Equalize"]], random=[0.5, 0.6, 0.51])
    moved = pixels(RandAugment()(noise, draws))
    assert draws.asked[0] == ("choice", list(OPS), 2) and len(OPS) == 10
    # 5 of 10 px at magnitude 5 of 10
    assert (moved[:, 5:] == pixels(noise)[:, :-5]).all() and (moved[:, :5] == GREY).all()
    left = pixels(RandAugment()(noise, Draws(choice=[["TranslateX"]], random=[0.1, 0.5])))
    assert (left[:, :-5] == pixels(noise)[:, 5:]).all()  # control: the sign is drawn


def test_translate_y_moves_rows(noise):
    moved = pixels(OPS["TranslateY"](noise, 0.3, Draws(random=[0.9])))
    assert (moved[3:] == pixels(noise)[:-3]).all() and (moved[:3] == GREY).all()


def test_shear_moves_each_row_by_its_distance_from_the_top():
    line = grey([[0, 0, 200, 0, 0, 0]] * 6)
    moved = pixels(OPS["ShearX"](line, 0.5, Draws(random=[0.1])))[..., 0]  # x' = x + 0.15 y
    assert moved[0].tolist() == [0, 0, 200, 0, 0, 0]
    # 0.85 and 0.15 of the line; grey comes in
    assert moved[1].tolist() == [round(0.15 * GREY), 0, 170, 30, 0, 0]
    assert moved[4].tolist() == [round(0.6 * GREY), 0, 80, 120, 0, 0]
    other = pixels(OPS["ShearX"](line, 0.5, Draws(random=[0.9])))[..., 0]
    assert other[4].tolist() == [0, 120, 80, 0, 0, round(0.6 * GREY)]
    turned = pixels(OPS["ShearY"](line.transpose(Image.Transpose.TRANSPOSE), 0.5, Draws(random=[0.1])))[
        ..., 0
    ]
    assert (turned == moved.T).all()


def test_rotation_is_anticlockwise_about_half_the_size():
    dot = np.full((7, 7), 10)
    dot[2, 5] = 250
    turned = pixels(warp(grey(dot), rotation(90, grey(dot))))[..., 0]
    # (x, y) = (5, 2) about (3.5, 3.5): x' = y = 2, y' = 7 - x = 2
    assert np.argwhere(turned == 250).tolist() == [[2, 2]]
    # half a pixel off the middle: a row comes in
    assert (turned[6] == 10).all() and (turned[0, :] == GREY).sum() == 7
    assert OPS["Rotate"](grey(dot), 0.5, Draws(random=[0.1])).size == (7, 7)
    there, back = (pixels(warp(grey(dot), rotation(sign * 15, grey(dot)))) for sign in (1, -1))
    assert (there != back).any()


@pytest.mark.parametrize(
    "shift, row", [(0.25, [round(100 * 0.75 + GREY * 0.25), 100, 175, 200]), (-0.5, [100, 150, 200, 164])]
)
def test_parts_of_a_pixel_are_blended(shift, row):
    made = pixels(warp(grey([[100, 100, 200, 200]] * 2), ((1, 0, shift), (0, 1, 0))))
    assert made[0, :, 0].tolist() == row


def test_a_shift_far_out_leaves_grey(noise):
    assert (pixels(warp(noise, ((1, 0, 500), (0, 1, 0)))) == GREY).all()
    assert (pixels(warp(noise, ((1, 0, 0), (0, 1, 0)))) == pixels(noise)).all()


def test_autocontrast_stretches_each_channel_to_the_whole_range():
    made = pixels(OPS["AutoContrast"](grey([[50, 100, 150]]), 0.5, None))
    assert made[0, :, 0].tolist() == [0, 127, 255]  # (100 - 50) · 255 / 100 = 127.5, cut
    flat = grey([[70, 70]])
    assert (pixels(OPS["AutoContrast"](flat, 0.5, None)) == 70).all()


def test_equalize_follows_the_cumulated_histogram():
    values = np.repeat([10, 20, 30, 40], [300, 300, 300, 255]).reshape(33, 35)
    made = pixels(OPS["Equalize"](grey(values), 0.5, None))[..., 0]
    step = 900 // 255  # all but the last level, over 255
    expected = {10: (step // 2) // step, 20: (step // 2 + 300) // step, 30: (step // 2 + 600) // step}
    assert (
        {level: int(made[values == level][0]) for level in expected} == expected == {10: 0, 20: 100, 30: 200}
    )
    assert made[values == 40][0] == 255  # clipped: (1 + 900) // 3 = 300


def test_brightness_and_sharpness_do_nothing_at_magnitude_five(noise):
    for name in ("Brightness", "Sharpness"):
        assert (pixels(OPS[name](noise, 0.5, None)) == pixels(noise)).all()
        assert (pixels(OPS[name](noise, 1.0, None)) != pixels(noise)).any()  # control
    brighter = pixels(OPS["Brightness"](noise, 1.0, None))
    assert np.abs(brighter - np.minimum(1.9 * pixels(noise), 255)).max() <= 1


def test_sharpness_moves_away_from_the_blurred_picture():
    dot = np.full((3, 3), 100)
    dot[1, 1] = 126
    blurred = (8 * 100 + 5 * 126) / 13  # 110
    assert pixels(OPS["Sharpness"](grey(dot), 0.0, None))[1, 1, 0] == int(blurred + 0.1 * (126 - blurred))
    assert pixels(OPS["Sharpness"](grey(dot), 1.0, None))[1, 1, 0] == int(blurred + 1.9 * (126 - blurred))
    assert (pixels(OPS["Sharpness"](grey(dot), 0.0, None))[0] == 100).all()  # edges stay


def test_the_same_seed_makes_the_same_picture(noise):
    def made(seed):
        rng = np.random.default_rng(seed)
        return [pixels(RandAugment()(noise, rng)) for _ in range(20)]

    assert all((a == b).all() for a, b in zip(made(1), made(1)))
    assert any((a != b).any() for a, b in zip(made(1), made(2)))
