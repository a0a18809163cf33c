"""Curves as inline SVG: numbers over layers or steps, which a browser draws without any script or file."""

import math
from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 240, 52, 12, 28


def svg(
    title: str,
    series: Mapping[str, list[float]],
    limits: Mapping[str, float] | None = None,
    log: bool = True,
    x_label: str = "layer",
) -> str:
    """A figure with one line per series. ``limits``: horizontal lines with a name."""
    values = [value for line in series.values() for value in line if usable(value, log)] + list(
        (limits or {}).values()
    )
    if not values:
        return ""
    low, high = spread(values, log)
    longest = max(map(len, series.values()))
    parts = [
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH}" y1="{y(value, low, high, log):.1f}" y2="{y(value, low, high, log):.1f}"/>'
        f'<text x="{WIDTH - 4}" y="{y(value, low, high, log) - 3:.1f}" text-anchor="end">{escape(name)}</text>'
        for name, value in (limits or {}).items()
    ]
    parts += [tick(value, low, high, log) for value in ticks(low, high, log)]
    for n, line in enumerate(series.values()):
        points = [
            (x(i, longest), y(value, low, high, log)) for i, value in enumerate(line) if usable(value, log)
        ]
        parts.append(
            f'<polyline class="s{n % 6}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
        )
        if len(points) <= 60:
            parts += [f'<circle class="s{n % 6}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in points]
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 8}">0</text><text x="{WIDTH - 4}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)} '
        f"{longest - 1}</text>"
    )
    legend = " ".join(f'<span class="key s{n % 6}">{escape(name)}</span>' for n, name in enumerate(series))
    return (
        f'<figure><figcaption>{escape(title)} {legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def usable(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def spread(values: list[float], log: bool) -> tuple[float, float]:
    """Lowest and highest of the axis."""
    low, high = min(values), max(values)
    if log:
        return low / 1.5, high * 1.5
    room = (high - low or 1.0) * 0.05
    return low - room, high + room


def x(i: int, count: int) -> float:
    return LEFT + 6 + (WIDTH - LEFT - 12) * i / max(count - 1, 1)


def y(value: float, low: float, high: float, log: bool) -> float:
    share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """A few round numbers between the two."""
    if log:
        powers = [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
        return powers[:: max(1, len(powers) // 5)] or [math.sqrt(low * high)]
    return [low + (high - low) * share for share in (0.1, 0.5, 0.9)]


def tick(value: float, low: float, high: float, log: bool) -> str:
    at = y(value, low, high, log)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    )
