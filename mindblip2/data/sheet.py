"""A page of pictures with their scores, for people to look at.  Drawn with Pillow."""
import math

from PIL import Image, ImageDraw, ImageFont

TILE = 224          # pixels of a picture's longer side
ROW = 22            # height of one line of text
BARS = 5            # best labels shown
MARGIN = 12
INK, PALE, BAR, RIGHT, WRONG = "#1b1b1f", "#e6e8ee", "#7aa2f7", "#2e9e5b", "#d1453b"


def score_sheet(pictures, results, truths=None, columns=4, title=""):
    """PIL pictures and their ``[{"score", "label"}, …]`` → one RGB page.  With ``truths`` (one label per picture) the right
    answer is green and a wrong first answer red."""
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


def _fit(picture):
    scale = TILE / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


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
