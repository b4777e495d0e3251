"""Predicts how long a pass keeps a device busy.

A forward pass is predictable: its time depends on its shape, not on what the texts say (Clockwork,
OSDI 2020, builds a whole server on that). So the model is a sum, ``fixed + per_token * tokens +
per_square * squared lengths + per_image_token * image_tokens``, with a floor below it where a device has
one (a GPU waits for the launches of a small pass), and one factor that follows what the device does today:
a clock that throttles, a neighbour on the same cores.

What the entries of a pass add to it, apart from what every pass costs, is called their *work*. Work adds
up, so that a pass can be composed entry by entry.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, exp, isfinite, log

_NEWEST_WEIGHT = 0.1
"""What the newest pass counts in the factor: a lasting change is followed within some twenty passes."""
_NUM_RESIDUALS = 256
"""Passes whose prediction error is remembered."""
_TINY = 1e-9
"""Less than this part of a pass is rounding."""
_MIN_FLOOR_GAIN = 0.5
"""A floor must halve the squared error, or it would be drawn through the noise of any handful of samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a pass its duration depends on."""

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
        self._residuals: deque[float] = deque(maxlen=_NUM_RESIDUALS)
        # The same in order of size; empty until somebody asks.
        self._ordered: list[float] = []

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
        texts = [(shape, s) for shape, s in samples if not shape.num_image_tokens]
        if not texts:
            raise ValueError("a cost model is fitted from at least one sample without images")
        for shape, device_s in samples:
            if not (isfinite(device_s) and device_s > 0):
                raise ValueError(f"a pass of {shape.num_tokens} tokens is said to have taken {device_s} s")
        self._floor_s, (self._per_token_s, self._fixed_s, self._per_square_s) = _fit_with_floor(texts)
        self._factor, self._per_image_token_s = 1.0, 0.0
        images = [
            (
                (float(shape.num_image_tokens),),
                device_s - self._fixed_s - self.predict_work_s(shape),
                device_s,
            )
            for shape, device_s in samples
            if shape.num_image_tokens
        ]
        (self._per_image_token_s,) = _fit_nonnegative(images, num_columns=1)
        self._num_passes = len(samples)
        self._ordered = []
        self._residuals.clear()
        self._residuals.extend(device_s / self.predict_s(shape) - 1 for shape, device_s in samples)

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

    def room_s(self, pass_s: float) -> float:
        """How much work fits into a pass of so many seconds.

        Below the floor more of it costs nothing. And a pass may be twice what it costs empty, whatever was
        asked for: on a device that is slow today a shorter one would spend its time on nothing.
        """
        return max(pass_s, self.floor_s, 2 * self.fixed_s) - self.fixed_s

    def predict_backlog_s(self, work: Shape, *, num_passes: int) -> float:
        """Device seconds for this work, cut into so many passes."""
        return max(num_passes * self.floor_s, num_passes * self.fixed_s + self.predict_work_s(work))

    def count_passes(
        self, work: Shape, *, num_entries: int, pass_s: float, max_tokens: int, max_entries: int
    ) -> int:
        """Into how many passes this work has to be cut, if nothing of them is left empty."""
        by_time = min(ceil(self.predict_work_s(work) / self.room_s(pass_s) - _TINY), num_entries)
        return max(by_time, ceil(work.num_tokens / max_tokens), ceil(num_entries / max_entries))

    def count_tokens(self, seconds: float, *, pass_s: float, max_tokens: int) -> int:
        """About how many tokens of short texts that is, in full passes."""
        pass_tokens = max_tokens
        if (per_token_s := self.predict_work_s(Shape(num_tokens=1))) > 0:
            pass_tokens = max(1, min(max_tokens, int(self.room_s(pass_s) / per_token_s + _TINY)))
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
        self._ordered = []
        self._residuals.append(device_s / predicted_s - 1)
        weight = max(_NEWEST_WEIGHT, 1 / self._num_passes)
        self._factor *= exp(weight * log(device_s / predicted_s))

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

    def __repr__(self) -> str:
        terms = [f"{self.fixed_s * 1e3:.3g} ms", f"{self._factor * self._per_token_s * 1e6:.3g} us a token"]
        if self._per_square_s:
            terms.append(f"{self._factor * self._per_square_s * 1e9:.3g} ns a squared length")
        if self._per_image_token_s:
            terms.append(f"{self._factor * self._per_image_token_s * 1e6:.3g} us an image token")
        floor = f", at least {self.floor_s * 1e3:.3g} ms" if self._floor_s else ""
        return (
            f"<CostModel {' + '.join(terms)}{floor}, "
            f"p99 residual {self.residual():+.0%} over {len(self._residuals)} passes>"
        )


_Row = tuple[tuple[float, ...], float, float]
"""What each coefficient is multiplied with, the seconds that should come out, and the seconds that the
error is relative to."""


def _fit_with_floor(samples: Sequence[tuple[Shape, float]]) -> tuple[float, tuple[float, ...]]:
    """The floor, and seconds a token, fixed, and a squared length, that suit the samples best.

    Candidates for the floor are the means of the two, three, ... smallest samples. 0 unless a floor is
    clearly better.
    """
    rows: list[_Row] = [
        ((float(shape.num_tokens), 1.0, float(shape.num_squared)), device_s, device_s)
        for shape, device_s in sorted(samples, key=lambda sample: sample[0].num_tokens)
    ]
    best = (0.0, _fit_nonnegative(rows, num_columns=3))
    least = _squared_error(rows, *best) * _MIN_FLOOR_GAIN
    # At least three samples are left for the slope: two are on a line whatever they say.
    for num_flat in range(2, len(rows) - 2):
        flat = [device_s for _, device_s, _ in rows[:num_flat]]
        floor_s = sum(flat) / num_flat
        coefficients = _fit_nonnegative(rows[num_flat:], num_columns=3)
        if (error := _squared_error(rows, floor_s, coefficients)) < least:
            best, least = (floor_s, coefficients), error
    return best


def _squared_error(rows: Iterable[_Row], floor_s: float, coefficients: Sequence[float]) -> float:
    return sum(((max(floor_s, _dot(x, coefficients)) - y) / scale) ** 2 for x, y, scale in rows)


def _fit_nonnegative(rows: Sequence[_Row], *, num_columns: int) -> tuple[float, ...]:
    """Non-negative coefficients with the least squared relative error; 0 for what the rows do not tell.

    The best non-negative solution is the free one of some subset of the columns. There are few columns,
    so all subsets are tried. Among equals the first wins: fewer coefficients, and earlier ones.
    """
    best, least = (0.0,) * num_columns, sum((y / scale) ** 2 for _, y, scale in rows)
    for size in range(1, num_columns + 1):
        for columns in combinations(range(num_columns), size):
            solved = _solve_least_squares([([x[i] for i in columns], y, scale) for x, y, scale in rows])
            if solved is None or min(solved) < 0:
                continue
            candidate = tuple(dict(zip(columns, solved, strict=True)).get(i, 0.0) for i in range(num_columns))
            error = _squared_error(rows, 0.0, candidate)
            # Rounding alone must not pay for another coefficient.
            if error < least - 1e-12 * len(rows):
                best, least = candidate, error
    return best


def _solve_least_squares(rows: Sequence[tuple[Sequence[float], float, float]]) -> list[float] | None:
    """The least squared relative error by the normal equations; ``None`` if a column depends on others."""
    if not rows:
        return None
    size = len(rows[0][0])
    weighted = [([value / scale for value in x], y / scale) for x, y, scale in rows]
    norms = [sum(x[i] ** 2 for x, _ in weighted) ** 0.5 for i in range(size)]
    if min(norms) == 0:
        return None
    # Columns of length 1, or tokens and their squares would differ by eight orders of magnitude.
    unit = [([value / norm for value, norm in zip(x, norms, strict=True)], y) for x, y in weighted]
    matrix: list[list[float]] = [
        [sum((x[i] * x[j] for x, _ in unit), 0.0) for j in range(size)]
        + [sum((x[i] * y for x, y in unit), 0.0)]
        for i in range(size)
    ]
    for i in range(size):
        if matrix[i][i] < 1e-9:  # The diagonal was 1: this column is the others' in disguise.
            return None
        for below in range(i + 1, size):
            factor = matrix[below][i] / matrix[i][i]
            matrix[below] = [b - factor * a for a, b in zip(matrix[i], matrix[below], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(matrix[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (matrix[i][size] - known) / matrix[i][i]
    return [value / norm for value, norm in zip(solution, norms, strict=True)]


def _dot(x: Sequence[float], coefficients: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, coefficients, strict=True))
