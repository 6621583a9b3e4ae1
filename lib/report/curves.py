"""Curves of metrics.jsonl as inline SVG: a panel per number, drawn in the colours of the page."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

MOST_POINTS = 240  # of a curve; more are averaged in groups
WIDTH, HEIGHT = 320, 170
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 10, 24
LOG_RATIO = 100.0  # largest / smallest value from which on the axis is logarithmic
LAST = ("train/grad_norm", "train/lr", "train/samples_per_s")  # panels behind all others


def series(records: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """{number: [(step, value)]} of what was logged twice or more, losses first, then evaluations, then what is seldom looked at."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        step = record.get("step")
        if not _is_number(step):
            continue
        for key, value in record.items():
            if "/" in key and _is_number(value):
                found.setdefault(key, []).append((float(step), float(value)))
    found = {key: points for key, points in found.items() if len(points) > 1}
    losses = [key for key in found if key.startswith("train/") and key not in (*LAST, "train/total")]
    if len(losses) == 1 and found[losses[0]] == found.get("train/total"):
        del found[losses[0]]
    rank = {key: (key in LAST, not key.startswith("train/"), key != "train/total") for key in found}
    return {key: found[key] for key in sorted(found, key=lambda k: rank[k])}


def panel(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One number over the steps, as a figure with its last value in the heading."""
    shown, per_group = _thinned(points)
    values = [v for _, v in shown]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low >= LOG_RATIO
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    bottom, top = min(low, ticks[0]), max(high, ticks[-1])
    first, last = shown[0][0], max(shown[-1][0], shown[0][0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = math.log(value / bottom) / math.log(top / bottom) if logarithmic else (value - bottom) / (top - bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">{short(t)}</text>'
        for t in ticks
    ]
    steps = [t for t in _ticks(first, last, 4) if first <= t <= last]
    lines += [f'<text x="{x(t):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(t)}</text>' for t in steps]
    path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in shown)
    marks = "".join(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.6"/>' for s, v in shown) if len(shown) < 30 else ""
    notes = [f"{len(points)} values"] + ([f"means of {per_group}"] if per_group > 1 else []) + (["log scale"] if logarithmic else [])
    told = f"{name}: from {short(points[0][1])} to {short(points[-1][1])}, least {short(low)}, greatest {short(high)}"
    data = " ".join(f"{x(s):.1f},{s:g},{short(v)}" for s, v in shown)
    return (
        f'<figure class="curve"><figcaption><b>{escape(name)}</b> <output>{short(points[-1][1])}</output></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(told)}" data-points="{data}">{"".join(lines)}'
        f'<polyline points="{path}"/>{marks}</svg><small>{escape(", ".join(notes))}</small></figure>'
    )


def short(value: float) -> str:
    """Four digits, without needless zeros."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], int]:
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(v for _, v in group) / len(group)) for group in groups], size


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from below `low` to above `high`, some `count` of them."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**e for e in range(first, last + 1, max(1, (last - first) // 4))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
