"""Predicts how long a pass keeps a device busy.

A forward pass is predictable: its time depends on its shape, not on what the texts say (Clockwork,
OSDI 2020, builds a whole server on that). So the model is a sum, ``fixed + per_token * tokens +
per_square * squared lengths + per_image_token * image_tokens``, with a floor below it where a device has
one (a GPU waits for the launches of a small pass), and one factor that follows what the device does today:
a clock that throttles, a neighbour on the same cores.

A factor moves the whole line. Where real passes show that its slope is wrong, as after a start on a machine
that was busy, the line is drawn anew through the latest passes of every kind.

What the entries of a pass add to it, apart from what every pass costs, is called their *work*. Work adds
up, so that a pass can be composed entry by entry.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, isfinite, log
from statistics import median
from typing import NamedTuple

from batching.fitting import Row, fit_nonnegative, fit_with_floor

_NEWEST_WEIGHT = 0.1
"""What the newest pass counts in the factor: a lasting change is followed within some twenty passes."""
_NUM_RESIDUALS = 256
"""Passes whose prediction error is remembered."""
_TINY = 1e-9
"""Less than this part of a pass is rounding."""
_PASSES_A_KIND = 16
"""Passes that are remembered of each kind, to draw the line through."""
_CHECK_EVERY = 32
"""Passes between two looks at whether the line still goes through the latest."""
_MIN_NEW = 4
"""A kind has a say in that when so many of its passes are new: fewer may all have had the same bad luck."""
_MAX_DEVIATION = 0.1
"""How far the middle one of a kind's passes may be from the line."""
_HALF_LIFE_PASSES = 256
_LEAST_WEIGHT = 0.01
"""A kind that was long not seen counts less than those that are, but still says where the line goes there."""


class Shape(NamedTuple):
    """What of a pass its duration depends on. A tuple: many are made for every pass that is composed."""

    num_tokens: int
    """Tokens of all entries."""
    num_squared: int = 0
    """The sum of their squared lengths: what attention costs grows with it."""
    num_image_tokens: int = 0
    """Those of the tokens that stand for images."""

    @classmethod
    def of(cls, parts: Iterable["Shape"]) -> "Shape":
        """The shape of a pass that is put together from these."""
        num_tokens = num_squared = num_image_tokens = 0
        for part in parts:
            num_tokens += part.num_tokens
            num_squared += part.num_squared
            num_image_tokens += part.num_image_tokens
        return cls(num_tokens=num_tokens, num_squared=num_squared, num_image_tokens=num_image_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostFigures:
    """What a cost model has learned, in seconds; the factor of today is in all of them."""

    fixed_s: float
    """What a pass costs before anything is in it."""
    per_token_s: float
    per_square_s: float
    """For each unit of an input's squared length."""
    per_image_token_s: float
    """What a token that stands for an image costs beyond any other."""
    floor_s: float
    """What a pass costs at the very least; 0 where there is no floor."""
    median_residual: float
    """How much longer than predicted recent passes took, as a part of the prediction: the middle one."""
    p99_residual: float
    """The same: 99 of 100 took less."""


@dataclass(slots=True)
class _Kind:
    """The latest passes of about one shape."""

    passes: deque[tuple[Shape, float]] = field(default_factory=lambda: deque(maxlen=_PASSES_A_KIND))
    num_new: int = 0
    """Since the line was last looked at."""
    newest: int = 0
    """The number of its last pass."""


class CostModel:
    """Device seconds of a pass, learned from passes. Owns its coefficients and its own error.

    The defaults are a small encoder on one CPU core. They only matter until the first passes have
    been seen: the first one counts in full, later ones less and less.
    """

    def __init__(
        self,
        *,
        fixed_s: float = 0.004,
        per_token_s: float = 0.0003,
        per_square_s: float = 0.0,
        per_image_token_s: float = 0.0,
        floor_s: float = 0.0,
    ) -> None:
        self._fixed_s = fixed_s
        self._per_token_s = per_token_s
        self._per_square_s = per_square_s
        self._per_image_token_s = per_image_token_s
        self._floor_s = floor_s
        self._factor = 1.0
        self._num_passes = 0
        self._version = 0
        self._residuals: deque[float] = deque(maxlen=_NUM_RESIDUALS)
        # The same in order of size; empty until somebody asks.
        self._ordered: list[float] = []
        # Empty until it is fitted: the passes of one size say nothing of the others.
        self._kinds: dict[tuple[int, int, int], _Kind] = {}

    def fit(self, samples: Sequence[tuple[Shape, float]]) -> None:
        """Start over from measured passes.

        Relative errors are made small, not absolute ones: a short query pass must be predicted as well
        as a long document pass. No coefficient becomes negative.

        Args:
            samples: Shapes and the device seconds they took; two different sizes or more tell the fixed
                part from the rest, and with one size all of it is put down to the tokens. A sample of
                one long text beside those of many short ones tells the squares from the tokens. What
                passes with images took beyond their tokens is put down to the images.

        Raises:
            ValueError: There is no sample without images, or a time is not a positive number.
        """
        if all(shape.num_image_tokens for shape, _ in samples):
            raise ValueError("a cost model is fitted from at least one sample without images")
        for shape, device_s in samples:
            if not (isfinite(device_s) and device_s > 0):
                raise ValueError(f"a pass of {shape.num_tokens} tokens is said to have taken {device_s} s")
        self._num_passes = len(samples)
        self._version += 1
        self._kinds = {}
        for shape, device_s in samples:
            self._remember(shape, device_s)
        # As they are: two samples of one kind are two points of a line.
        self._draw([(shape, device_s, 1.0) for shape, device_s in samples])
        self._ordered = []
        self._residuals.clear()
        self._residuals.extend(device_s / self.predict_s(shape) - 1 for shape, device_s in samples)

    @property
    def version(self) -> int:
        """Another whenever predictions may have changed."""
        return self._version

    @property
    def fixed_s(self) -> float:
        """What a pass costs before anything is in it."""
        return self._factor * self._fixed_s

    @property
    def floor_s(self) -> float:
        """What a pass costs at the very least; 0 where small passes are as cheap as their work."""
        return self._factor * self._floor_s

    def predict_s(self, shape: Shape) -> float:
        """Device seconds that one pass of this shape will take."""
        return max(self.floor_s, self.fixed_s + self.predict_work_s(shape))

    def predict_work_s(self, shape: Shape) -> float:
        """Device seconds that entries of this shape add to a pass."""
        return self._factor * (
            self._per_token_s * shape.num_tokens
            + self._per_square_s * shape.num_squared
            + self._per_image_token_s * shape.num_image_tokens
        )

    @property
    def least_bound_s(self) -> float:
        """What a pass may take, whatever was asked for: what any pass takes, and twice what it costs empty.

        On a device that is slow today a shorter one would spend its time on nothing.
        """
        return max(self.floor_s, 2 * self.fixed_s)

    def room_s(self, pass_s: float) -> float:
        """How much work fits into a pass of so many seconds. Below the floor more of it costs nothing."""
        return max(pass_s, self.least_bound_s) - self.fixed_s

    def predict_backlog_s(self, work: Shape, *, num_passes: int) -> float:
        """Device seconds for this work, cut into so many passes."""
        return max(num_passes * self.floor_s, num_passes * self.fixed_s + self.predict_work_s(work))

    def count_passes(
        self, work: Shape, *, num_entries: int, pass_s: float, max_tokens: int, max_entries: int
    ) -> int:
        """Into how many passes this work has to be cut, if nothing of them is left empty."""
        by_time = min(ceil(self.predict_work_s(work) / self.room_s(pass_s) - _TINY), num_entries)
        return max(by_time, ceil(work.num_tokens / max_tokens), ceil(num_entries / max_entries))

    def pass_tokens(self, pass_s: float, *, max_tokens: int) -> int:
        """About how many tokens of short texts a pass of so many seconds has."""
        per_token_s = self.predict_work_s(Shape(num_tokens=1))
        if per_token_s <= 0:
            return max_tokens
        return max(1, min(max_tokens, int(self.room_s(pass_s) / per_token_s + _TINY)))

    def count_tokens(self, seconds: float, *, pass_s: float, max_tokens: int) -> int:
        """About how many tokens of short texts that is, in full passes."""
        pass_tokens = self.pass_tokens(pass_s, max_tokens=max_tokens)
        return int(seconds / self.predict_s(Shape(num_tokens=pass_tokens)) * pass_tokens)

    def observe(self, shape: Shape, device_s: float) -> None:
        """Learn from a pass that ran.

        The factor is averaged over logarithms, so that one pass that took a hundred times as long (a
        suspended machine) moves it by 58 % and not by a factor of eleven.
        """
        predicted_s = self.predict_s(shape)
        if not (isfinite(device_s) and device_s > 0 and predicted_s > 0):
            return  # A clock too coarse for the pass teaches nothing, and nonsense would stay for ever.
        self._num_passes += 1
        self._version += 1
        self._ordered = []
        self._residuals.append(device_s / predicted_s - 1)
        weight = max(_NEWEST_WEIGHT, 1 / self._num_passes)
        self._factor *= exp(weight * log(device_s / predicted_s))
        if self._kinds:
            self._remember(shape, device_s)
            if self._num_passes % _CHECK_EVERY == 0:
                self._correct()

    def residual(self, quantile: float = 0.99) -> float:
        """How much longer than predicted passes took, as a part of the prediction.

        0.2 at the quantile 0.99 means that 99 of 100 recent passes took at most 1.2 times the
        prediction. 0 before any pass was seen.
        """
        if not self._residuals:
            return 0.0
        if not self._ordered:
            self._ordered = sorted(self._residuals)
        ordered = self._ordered
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def figures(self) -> CostFigures:
        """What has been learned until now."""
        return CostFigures(
            fixed_s=self.fixed_s,
            per_token_s=self._factor * self._per_token_s,
            per_square_s=self._factor * self._per_square_s,
            per_image_token_s=self._factor * self._per_image_token_s,
            floor_s=self.floor_s,
            median_residual=self.residual(0.5),
            p99_residual=self.residual(0.99),
        )

    def _remember(self, shape: Shape, device_s: float) -> None:
        kind = self._kinds.setdefault(_kind_of(shape), _Kind())
        kind.passes.append((shape, device_s))
        kind.num_new += 1
        kind.newest = self._num_passes

    def _correct(self) -> None:
        """Draw the line anew if the latest passes of a kind are not on it."""
        points = [(kind, self._middle(kind)) for kind in self._kinds.values()]
        is_off = any(
            kind.num_new >= _MIN_NEW and abs(log(middle_s / self.predict_s(shape))) > log(1 + _MAX_DEVIATION)
            for kind, (shape, middle_s) in points
        )
        if is_off:
            weights = [
                max(_LEAST_WEIGHT, 0.5 ** ((self._num_passes - kind.newest) / _HALF_LIFE_PASSES))
                for kind, _ in points
            ]
            self._draw([(*point, weight) for (_, point), weight in zip(points, weights, strict=True)])
            # Errors of the line that was are no errors of this one.
            self._ordered = []
            self._residuals.clear()
            self._residuals.extend(
                s / self.predict_s(shape) - 1 for kind in self._kinds.values() for shape, s in kind.passes
            )
        for kind in self._kinds.values():
            kind.num_new = 0

    def _middle(self, kind: _Kind) -> tuple[Shape, float]:
        """A pass that stands for those of a kind; one that took a hundred times as long has no say in it."""
        whole = Shape.of(shape for shape, _ in kind.passes)
        count = len(kind.passes)
        shape = Shape(
            num_tokens=round(whole.num_tokens / count),
            num_squared=round(whole.num_squared / count),
            num_image_tokens=round(whole.num_image_tokens / count),
        )
        return shape, self.predict_s(shape) * median(s / self.predict_s(one) for one, s in kind.passes)

    def _draw(self, points: Iterable[tuple[Shape, float, float]]) -> None:
        """Find the coefficients that suit shapes and their seconds best, by the weight of each."""
        points = sorted(points, key=lambda point: point[0].num_tokens)
        texts = [
            Row(
                x=(float(shape.num_tokens), 1.0, float(shape.num_squared)),
                y=device_s,
                scale=device_s,
                weight=weight,
            )
            for shape, device_s, weight in points
            if not shape.num_image_tokens
        ]
        self._floor_s, (self._per_token_s, self._fixed_s, self._per_square_s) = fit_with_floor(
            texts, num_columns=3
        )
        self._factor, self._per_image_token_s = 1.0, 0.0
        images = [
            Row(
                x=(float(shape.num_image_tokens),),
                y=device_s - self._fixed_s - self.predict_work_s(shape),
                scale=device_s,
                weight=weight,
            )
            for shape, device_s, weight in points
            if shape.num_image_tokens
        ]
        (self._per_image_token_s,) = fit_nonnegative(images, num_columns=1)

    def __repr__(self) -> str:
        terms = [_time(self.fixed_s), f"{_time(self._factor * self._per_token_s)} a token"]
        if self._per_square_s:
            terms.append(f"{_time(self._factor * self._per_square_s)} a squared length")
        if self._per_image_token_s:
            terms.append(f"{_time(self._factor * self._per_image_token_s)} an image token")
        floor = f", at least {_time(self.floor_s)}" if self._floor_s else ""
        return (
            f"<CostModel {' + '.join(terms)}{floor}, "
            f"p99 residual {self.residual():+.0%} over {len(self._residuals)} passes>"
        )


def _time(time_s: float) -> str:
    """Three digits in the unit that needs no exponent for them: ``5 ms``, and not ``5e+03 us``."""
    for unit_s, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if time_s >= 0.9995 * unit_s:
            return f"{time_s / unit_s:.3g} {unit}"
    return f"{time_s * 1e9:.3g} ns"


def _kind_of(shape: Shape) -> tuple[int, int, int]:
    """Shapes are of one kind if they differ by less than a factor of two in tokens, and of four in length."""
    mean_length = shape.num_squared // max(1, shape.num_tokens)
    return shape.num_tokens.bit_length(), mean_length.bit_length() // 2, shape.num_image_tokens.bit_length()
