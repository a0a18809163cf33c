"""Pages of results for people to look at: scores of labels, hits of a search, confusions.  Drawn with
Pillow."""

import math

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

TILE = 224  # pixels of a picture's longer side
ROW = 22  # height of one line of text
BARS = 5  # best labels shown
MARGIN = 12
HIT = 112  # pixels of a picture's longer side on the page of hits
LINE = 620  # width of the hits beside a picture
MATRIX = 900  # width of a confusion matrix
INK, PALE, BAR, RIGHT, WRONG = "#1b1b1f", "#e6e8ee", "#7aa2f7", "#2e9e5b", "#d1453b"


def score_sheet(pictures, results, truths=None, columns=4, title=""):
    """PIL pictures and their ``[{"score", "label"}, …]`` → one RGB page.  With ``truths`` (one label per
    picture) the right answer is green and a wrong first answer red."""
    shown = min(BARS, max(len(result) for result in results))
    width, height = TILE + 2 * MARGIN, TILE + (shown + 1) * ROW + 2 * MARGIN
    columns = min(columns, len(pictures))
    top = 2 * ROW if title else 0
    page = Image.new("RGB", (columns * width, top + math.ceil(len(pictures) / columns) * height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, ROW // 2), title, INK, ImageFont.load_default(16))
    for i, (picture, result) in enumerate(zip(pictures, results)):
        x, y = i % columns * width + MARGIN, top + i // columns * height + MARGIN
        small = _fit(picture)
        page.paste(small, (x + (TILE - small.width) // 2, y + (TILE - small.height) // 2))
        _bars(draw, x, y + TILE + 4, result[:shown], truths[i] if truths else None)
    return page


def hit_sheet(image_rows, text_rows, title=""):
    """What was found, best first: ``image_rows`` are (PIL picture, [(text, score, is right), …]),
    ``text_rows`` are (text, [(PIL picture, score, is right), …]).  Right hits are green with a tick, wrong
    ones red with a cross."""
    hits = max([len(found) for _, found in text_rows], default=0)
    width = max(HIT + LINE, hits * (HIT + MARGIN)) + 2 * MARGIN
    heights = (
        [max(HIT, len(found) * ROW) + MARGIN for _, found in image_rows],
        [HIT + 2 * ROW + MARGIN for _ in text_rows],
    )
    page = Image.new("RGB", (width, 2 * ROW + sum(map(sum, heights)) + MARGIN), "white")
    draw, font, large = ImageDraw.Draw(page), ImageFont.load_default(13), ImageFont.load_default(16)
    draw.text((MARGIN, ROW // 2), _cut(draw, title, large, width - 2 * MARGIN), INK, large)
    y = 2 * ROW
    for (picture, found), height in zip(image_rows, heights[0]):
        page.paste(_fit(picture, HIT), (MARGIN, y))
        for rank, hit in enumerate(found):
            _hit_line(draw, HIT + 2 * MARGIN, y + rank * ROW, *hit)
        y += height
    for (text, found), height in zip(text_rows, heights[1]):
        draw.text((MARGIN, y), _cut(draw, text, font, width - 2 * MARGIN), INK, font)
        for rank, (picture, score, right) in enumerate(found):
            x = MARGIN + rank * (HIT + MARGIN)
            page.paste(_fit(picture, HIT), (x, y + ROW))
            _sign(draw, x, y + ROW + HIT + 2, right)
            draw.text((x + 18, y + ROW + HIT + 1), f"{score:.2f}", RIGHT if right else WRONG, font)
        y += height
    return page


def text_sheet(pictures, texts, title="", columns=2):
    """PIL pictures with what was written about them, ``[(text, is right or None), …]`` each: right texts are
    green with a tick, wrong ones red with a cross, others (a question) without a sign."""
    columns, font = min(columns, len(pictures)), ImageFont.load_default(13)
    width, height = HIT + LINE // 2 + 3 * MARGIN, HIT + MARGIN
    page = Image.new(
        "RGB", (columns * width, 2 * ROW + math.ceil(len(pictures) / columns) * height + MARGIN), "white"
    )
    draw, large = ImageDraw.Draw(page), ImageFont.load_default(16)
    draw.text((MARGIN, ROW // 2), _cut(draw, title, large, page.width - 2 * MARGIN), INK, large)
    for i, (picture, lines) in enumerate(zip(pictures, texts)):
        x, y = i % columns * width + MARGIN, 2 * ROW + i // columns * height
        page.paste(_fit(picture, HIT), (x, y))
        x += HIT + MARGIN
        for text, right in lines:
            if right is not None:
                _sign(draw, x, y + 2, right)
            colour = INK if right is None else RIGHT if right else WRONG
            for line in _wrapped(draw, text, font, LINE // 2 - 18):
                draw.text((x + 18, y), line, colour, font)
                y += ROW
    return page


def _wrapped(draw, text, font, width):
    """The text in lines that fit, at most as many as a picture is high."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = (
            [longer] if draw.textlength(longer, font) <= width or not lines[-1] else [lines[-1], word]
        )
    return [_cut(draw, line, font, width) for line in lines[: HIT // ROW - 1]]


def confusion_sheet(counts_LL, labels, title=""):
    """A confusion matrix, (L, L) counts of truth (rows) and answer (columns): the darker, the larger the
    share of its row; right answers, on the diagonal, are green.  Counts are written where there is room."""
    cell = max(6, min(40, MATRIX // len(labels)))
    font, side = ImageFont.load_default(max(7, min(13, cell - 1))), cell * len(labels)
    words = [str(label)[:24] for label in labels]
    room = math.ceil(max(font.getlength(word) for word in words)) + MARGIN
    page = Image.new("RGB", (max(room + side + MARGIN, MATRIX // 2), 2 * ROW + room + side + MARGIN), "white")
    draw, top, large = ImageDraw.Draw(page), 2 * ROW + room, ImageFont.load_default(16)
    draw.text((MARGIN, ROW // 2), _cut(draw, title, large, page.width - 2 * MARGIN), INK, large)
    shares = counts_LL / np.maximum(counts_LL.sum(1, keepdims=True), 1)
    upright = Image.new("L", (room, side))  # the labels of the columns, turned below
    for i, word in enumerate(words):
        draw.text((room - 4 - font.getlength(word), top + i * cell), word, INK, font)
        ImageDraw.Draw(upright).text(
            (room - 4 - font.getlength(word), side - (i + 1) * cell), word, 255, font
        )
        for j, count in enumerate(counts_LL[i]):
            box = (room + j * cell, top + i * cell, room + (j + 1) * cell, top + (i + 1) * cell)
            draw.rectangle(box, _shade(RIGHT if i == j else WRONG, shares[i, j]), PALE if cell > 8 else None)
            if count and cell >= 24:
                draw.text((box[0] + 4, box[1] + 4), str(count), INK, font)
    page.paste(
        Image.new("RGB", (side, room), INK), (room, 2 * ROW), upright.transpose(Image.Transpose.ROTATE_270)
    )
    return page


def _shade(colour, share):
    """White at 0, the colour at 1; small shares are lifted, so that a single confusion is seen."""
    weight = 0.15 + 0.85 * share if share else 0.0
    return tuple(round(255 + weight * (one - 255)) for one in ImageColor.getrgb(colour))


def _hit_line(draw, x, y, text, score, right):
    font, colour = ImageFont.load_default(13), RIGHT if right else WRONG
    _sign(draw, x, y + 2, right)
    draw.text((x + 18, y), f"{score:.2f}", colour, font)
    draw.text((x + 64, y), _cut(draw, text, font, LINE - 64 - 2 * MARGIN), INK, font)


def _sign(draw, x, y, right):
    """A tick or a cross: right and wrong must not be told by colour alone."""
    strokes = (
        [(x, y + 7, x + 4, y + 12, x + 12, y + 1)]
        if right
        else [(x, y + 1, x + 11, y + 12), (x, y + 12, x + 11, y + 1)]
    )
    for stroke in strokes:
        draw.line(stroke, RIGHT if right else WRONG, 3)


def _cut(draw, text, font, width):
    """The text, or as much of it as fits."""
    while text and draw.textlength(text, font) > width:
        text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
    return text


def _fit(picture, side=TILE):
    scale = side / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize(
        size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    )


def _bars(draw, x, y, result, truth):
    font = ImageFont.load_default(13)
    for rank, entry in enumerate(result):
        colour = BAR
        if truth is not None:
            colour = RIGHT if entry["label"] == truth else WRONG if rank == 0 else BAR
        line = y + rank * ROW
        draw.rectangle((x, line, x + TILE, line + ROW - 4), fill=PALE)
        draw.rectangle((x, line, x + round(TILE * entry["score"]), line + ROW - 4), fill=colour)
        draw.text((x + 4, line + 1), entry["label"][:24], INK, font)
        score = f"{entry['score']:.3f}"
        draw.text((x + TILE - 4 - draw.textlength(score, font), line + 1), score, INK, font)
