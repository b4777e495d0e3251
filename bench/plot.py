"""Charts as SVG, written by hand: lines over logarithmic axes, each named at its end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 50, 60
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Of Okabe and Ito, which most eyes tell apart."""
_LABEL_HEIGHT = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One named line."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What one direction shows. Values are positive, the scale is logarithmic."""

    label: str
    ticks: Sequence[tuple[float, str]]

    @property
    def low(self) -> float:
        return self.ticks[0][0]

    @property
    def high(self) -> float:
        return self.ticks[-1][0]

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        clipped = min(max(value, self.low), self.high)
        return math.log(clipped / self.low) / math.log(self.high / self.low)


def decades(label: str, values: Sequence[float]) -> Axis:
    """An axis of powers of ten around the values, with ticks at 1, 2 and 5."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = [10.0**power * digit for power in range(first, max(last, first + 1)) for digit in (1, 2, 5)]
    marks = [*steps, 10.0 ** max(last, first + 1)]
    low = max(mark for mark in marks if mark <= min(values))
    high = min((mark for mark in marks if mark >= max(values) and mark > low), default=marks[-1])
    return Axis(label=label, ticks=[(mark, f"{mark:,.10g}") for mark in marks if low <= mark <= high])


def latency_chart(title: str, latencies_s: Mapping[str, Sequence[float]]) -> str:
    """The latency of each arm over the percentile, up to what its number of queries can tell."""
    lines = [Line(name=name, points=_percentiles(samples)) for name, samples in latencies_s.items()]
    answered = [y for line in lines for _, y in line.points if math.isfinite(y)]
    # 1 / (1 - share): every nine is as wide as the one before.
    shares = ((1.0, "0 %"), (2.0, "50 %"), (10.0, "90 %"), (100.0, "99 %"), (1_000.0, "99.9 %"))
    return chart(
        title,
        Axis(label="of the queries were answered within", ticks=shares),
        decades("milliseconds", answered),
        lines,
    )


def _percentiles(samples_s: Sequence[float]) -> list[tuple[float, float]]:
    ordered = sorted(samples_s)
    count = len(ordered)
    # The last tenth of a decade is told by ten queries or fewer: it stays, for its outliers are real.
    return [(count / (count - rank), ordered[rank] * 1e3) for rank in range(count)]


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """A chart of lines; what lies outside the axes is drawn at their border."""
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at_x(value: float) -> float:
        return _LEFT + x.place(value) * inner_width

    def at_y(value: float) -> float:
        return _TOP + (1 - y.place(value)) * inner_height

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 24, title, size=15),
        _text((_LEFT + right) / 2, _HEIGHT - 14, x.label, anchor="middle"),
        _text(_LEFT - 8, _TOP - 12, y.label, anchor="middle"),
    ]
    for value, label in x.ticks:
        parts.append(_rule(at_x(value), _TOP, at_x(value), bottom))
        parts.append(_text(at_x(value), bottom + 18, label, anchor="middle"))
    for value, label in y.ticks:
        parts.append(_rule(_LEFT, at_y(value), right, at_y(value)))
        parts.append(_text(_LEFT - 8, at_y(value) + 4, label, anchor="end"))
    ends: list[tuple[float, str, str]] = []
    for index, line in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        parts.append(_polyline(_thinned(line.points, at_x, at_y), colour))
        ends.append((at_y(line.points[-1][1]), line.name, colour))
    for place, name, colour in _spread_labels(ends):
        parts.append(_text(right + 10, place + 4, name, colour=colour))
    return "\n".join([*parts, "</svg>\n"])


def _thinned(
    points: Sequence[tuple[float, float]], at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Points on the page, without those within half a unit of the one before."""
    kept: list[tuple[float, float]] = []
    for number, (x, y) in enumerate(points):
        place = (at_x(x), at_y(y))
        is_last = number == len(points) - 1
        if is_last or not kept or math.dist(kept[-1], place) >= 0.5:
            kept.append(place)
    return kept


def _spread_labels(ends: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """Move labels apart, downwards, so that none lies on another."""
    placed: list[tuple[float, str, str]] = []
    for place, name, colour in sorted(ends):
        lowest = placed[-1][0] + _LABEL_HEIGHT if placed else place
        placed.append((max(place, lowest), name, colour))
    return placed


def _polyline(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
