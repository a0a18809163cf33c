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
