"""The result page: what is on it, and that it shows what it is given."""

import numpy as np
from PIL import Image, ImageColor

from mindblip2.evaluation import visualize

PICTURE = Image.new("RGB", (20, 40), (200, 30, 60))
RESULT = [
    {"score": 0.75, "label": "a red seven"},
    {"score": 0.2, "label": "a red one"},
    {"score": 0.05, "label": "a red two"},
]


def pixels(page, colour):
    return int((np.asarray(page) == ImageColor.getrgb(colour)).all(-1).sum())


def test_the_picture_stands_on_the_page_enlarged_without_new_colours():
    page = visualize.score_sheet([PICTURE], [RESULT])
    shown = (np.asarray(page) == (200, 30, 60)).all(-1)
    assert (
        shown.sum() == visualize.TILE * visualize.TILE // 2
        and shown.any(0).sum() * 2 == shown.any(1).sum() == visualize.TILE
    )


def test_bars_are_as_long_as_the_scores():
    half, whole = (
        pixels(visualize.score_sheet([PICTURE], [[{"score": s, "label": ""}]]), visualize.BAR)
        for s in (0.5, 1.0)
    )
    assert 0.45 < half / whole < 0.55


def test_truths_colour_the_answers():
    right = visualize.score_sheet([PICTURE], [RESULT], ["a red seven"])
    wrong = visualize.score_sheet([PICTURE], [RESULT], ["a red one"])
    untold = visualize.score_sheet([PICTURE], [RESULT])
    assert pixels(right, visualize.RIGHT) and not pixels(right, visualize.WRONG)
    assert pixels(wrong, visualize.RIGHT) and pixels(wrong, visualize.WRONG)
    assert not pixels(untold, visualize.RIGHT) and not pixels(untold, visualize.WRONG)


def test_pages_grow_by_rows_and_take_any_mode_and_many_labels():
    many = [{"score": 0.01, "label": f"label {i}" * 9} for i in range(100)]
    one, nine = (
        visualize.score_sheet(
            [PICTURE.convert(mode) for mode in ("L", "P", "RGBA")[:1] * n], [many] * n, title="t"
        )
        for n in (1, 9)
    )
    assert nine.width == 4 * one.width and nine.height > 2 * one.height
    assert (
        visualize.score_sheet([PICTURE.convert("RGBA"), PICTURE.convert("P")], [RESULT, RESULT]).mode == "RGB"
    )


def test_hits_are_marked_by_colour_and_by_sign():
    right = visualize.hit_sheet([(PICTURE, [("a red seven", 3.25, True)])], [])
    wrong = visualize.hit_sheet([(PICTURE, [("a red seven", 3.25, False)])], [])
    assert pixels(right, visualize.RIGHT) and not pixels(right, visualize.WRONG)
    assert pixels(wrong, visualize.WRONG) and not pixels(wrong, visualize.RIGHT)
    shapes = [
        (np.asarray(page) == ImageColor.getrgb(colour)).all(-1)[
            :, : visualize.HIT + 2 * visualize.MARGIN + 14
        ]
        for page, colour in ((right, visualize.RIGHT), (wrong, visualize.WRONG))
    ]
    assert (shapes[0] != shapes[1]).sum() > 20  # told apart without colours


def test_a_page_of_hits_has_room_for_both_directions():
    hits = [("text " * 60, -1.5, False)] * 5
    images = visualize.hit_sheet([(PICTURE, hits)] * 3, [])
    both = visualize.hit_sheet(
        [(PICTURE, hits)] * 3, [("query " * 60, [(PICTURE.convert("L"), 2.5, True)] * 5)] * 2, "title " * 60
    )
    assert both.height > images.height + 2 * visualize.HIT and both.width == images.width
    # long texts are cut, not written over the edge
    assert (np.asarray(both)[:, -visualize.MARGIN :] == 255).all()


def test_confusions_are_red_and_right_answers_green():
    counts = np.array([[3, 0], [1, 1]])
    page = visualize.confusion_sheet(counts, ["cat", "dog"])
    # cat was always right, dog not always wrong
    assert pixels(page, visualize.RIGHT) > 500 and not pixels(page, visualize.WRONG)
    assert pixels(visualize.confusion_sheet(counts[:, ::-1], ["cat", "dog"]), visualize.WRONG) > 500
    large = visualize.confusion_sheet(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], "t" * 500)
    assert large.width < 1200 and pixels(large, visualize.RIGHT) > 100 * 36


def test_texts_stand_beside_their_pictures_and_are_marked():
    right, wrong, neither = (
        visualize.text_sheet([PICTURE], [[("a red seven", mark)]]) for mark in (True, False, None)
    )
    assert (
        pixels(right, visualize.RIGHT)
        and not pixels(right, visualize.WRONG)
        and pixels(wrong, visualize.WRONG)
    )
    assert pixels(neither, visualize.INK) and not pixels(neither, visualize.RIGHT) + pixels(
        neither, visualize.WRONG
    )
    long = visualize.text_sheet(
        [PICTURE] * 3, [[("what colour is the seven? " * 20, None), ("word" * 90, True)]] * 3, "title " * 90
    )
    assert long.width == 2 * right.width and (np.asarray(long)[:, -visualize.MARGIN // 2 :] == 255).all()
