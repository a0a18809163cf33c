"""The result page: what is on it, and that it shows what it is given."""
import numpy as np
from PIL import Image, ImageColor

from mindblip2.data import sheet

PICTURE = Image.new("RGB", (20, 40), (200, 30, 60))
RESULT = [{"score": 0.75, "label": "a red seven"}, {"score": 0.2, "label": "a red one"}, {"score": 0.05, "label": "a red two"}]


def pixels(page, colour):
    return int((np.asarray(page) == ImageColor.getrgb(colour)).all(-1).sum())


def test_the_picture_stands_on_the_page_enlarged_without_new_colours():
    page = sheet.score_sheet([PICTURE], [RESULT])
    shown = (np.asarray(page) == (200, 30, 60)).all(-1)
    assert shown.sum() == sheet.TILE * sheet.TILE // 2 and shown.any(0).sum() * 2 == shown.any(1).sum() == sheet.TILE


def test_bars_are_as_long_as_the_scores():
    half, whole = (pixels(sheet.score_sheet([PICTURE], [[{"score": s, "label": ""}]]), sheet.BAR) for s in (0.5, 1.0))
    assert 0.45 < half / whole < 0.55


def test_truths_colour_the_answers():
    right = sheet.score_sheet([PICTURE], [RESULT], ["a red seven"])
    wrong = sheet.score_sheet([PICTURE], [RESULT], ["a red one"])
    untold = sheet.score_sheet([PICTURE], [RESULT])
    assert pixels(right, sheet.RIGHT) and not pixels(right, sheet.WRONG)
    assert pixels(wrong, sheet.RIGHT) and pixels(wrong, sheet.WRONG)
    assert not pixels(untold, sheet.RIGHT) and not pixels(untold, sheet.WRONG)


def test_pages_grow_by_rows_and_take_any_mode_and_many_labels():
    many = [{"score": 0.01, "label": f"label {i}" * 9} for i in range(100)]
    one, nine = (sheet.score_sheet([PICTURE.convert(mode) for mode in ("L", "P", "RGBA")[:1] * n], [many] * n, title="t")
                 for n in (1, 9))
    assert nine.width == 4 * one.width and nine.height > 2 * one.height
    assert sheet.score_sheet([PICTURE.convert("RGBA"), PICTURE.convert("P")], [RESULT, RESULT]).mode == "RGB"


def test_hits_are_marked_by_colour_and_by_sign():
    right = sheet.hit_sheet([(PICTURE, [("a red seven", 3.25, True)])], [])
    wrong = sheet.hit_sheet([(PICTURE, [("a red seven", 3.25, False)])], [])
    assert pixels(right, sheet.RIGHT) and not pixels(right, sheet.WRONG)
    assert pixels(wrong, sheet.WRONG) and not pixels(wrong, sheet.RIGHT)
    shapes = [(np.asarray(page) == ImageColor.getrgb(colour)).all(-1)[:, :sheet.HIT + 2 * sheet.MARGIN + 14]
              for page, colour in ((right, sheet.RIGHT), (wrong, sheet.WRONG))]
    assert (shapes[0] != shapes[1]).sum() > 20      # told apart without colours


def test_a_page_of_hits_has_room_for_both_directions():
    hits = [("text " * 60, -1.5, False)] * 5
    images = sheet.hit_sheet([(PICTURE, hits)] * 3, [])
    both = sheet.hit_sheet([(PICTURE, hits)] * 3, [("query " * 60, [(PICTURE.convert("L"), 2.5, True)] * 5)] * 2, "title " * 60)
    assert both.height > images.height + 2 * sheet.HIT and both.width == images.width
    assert (np.asarray(both)[:, -sheet.MARGIN:] == 255).all()       # long texts are cut, not written over the edge


def test_confusions_are_red_and_right_answers_green():
    counts = np.array([[3, 0], [1, 1]])
    page = sheet.confusion_sheet(counts, ["cat", "dog"])
    assert pixels(page, sheet.RIGHT) > 500 and not pixels(page, sheet.WRONG)    # cat was always right, dog not always wrong
    assert pixels(sheet.confusion_sheet(counts[:, ::-1], ["cat", "dog"]), sheet.WRONG) > 500
    large = sheet.confusion_sheet(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], "t" * 500)
    assert large.width < 1200 and pixels(large, sheet.RIGHT) > 100 * 36


def test_texts_stand_beside_their_pictures_and_are_marked():
    right, wrong, neither = (sheet.text_sheet([PICTURE], [[("a red seven", mark)]]) for mark in (True, False, None))
    assert pixels(right, sheet.RIGHT) and not pixels(right, sheet.WRONG) and pixels(wrong, sheet.WRONG)
    assert pixels(neither, sheet.INK) and not pixels(neither, sheet.RIGHT) + pixels(neither, sheet.WRONG)
    long = sheet.text_sheet([PICTURE] * 3, [[("what colour is the seven? " * 20, None), ("word" * 90, True)]] * 3, "title " * 90)
    assert long.width == 2 * right.width and (np.asarray(long)[:, -sheet.MARGIN // 2:] == 255).all()
