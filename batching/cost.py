"""Predicts how long a pass keeps a device busy.

A forward pass is predictable: its time depends on its shape, not on what the texts say (Clockwork,
OSDI 2020, builds a whole server on that). So the model is a line through measured passes, ``fixed +
per_token * tokens + per_image_token * image_tokens``, and one factor that follows what the device does
today: a clock that throttles, a neighbour on the same cores.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, isfinite, log

_NEWEST_WEIGHT = 0.1
"""What the newest pass counts in the factor: a lasting change is followed within some twenty passes."""
_NUM_RESIDUALS = 256
"""Passes whose prediction error is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a pass its duration depends on.

    A new term of the model (squared lengths) is a new field here with a default, and a new coefficient
    below; nobody else counts.
    """

    num_tokens: int
    """Tokens of all entries."""
    num_image_tokens: int = 0
    """Those of them that stand for images."""


class CostModel:
    """Device seconds of a pass, learned from passes. Owns its coefficients and its own error.

    The defaults are a small encoder on one CPU core. They only matter until the first passes have
    been seen: the first one counts in full, later ones less and less.
    """

    def __init__(
        self, *, fixed_s: float = 0.004, per_token_s: float = 0.0003, per_image_token_s: float = 0.0
    ) -> None:
        self._fixed_s = fixed_s
        self._per_token_s = per_token_s
        self._per_image_token_s = per_image_token_s
        self._factor = 1.0
        self._num_passes = 0
        self._residuals: deque[float] = deque(maxlen=_NUM_RESIDUALS)

    def fit(self, samples: Sequence[tuple[Shape, float]]) -> None:
        """Start over from measured passes.

        Relative errors are made small, not absolute ones: a short query pass must be predicted as well
        as a long document pass. Neither coefficient becomes negative.

        Args:
            samples: Shapes and the device seconds they took; two different sizes or more tell the fixed
                part from the rest, and with one size all of it is put down to the tokens. What passes with
                images took beyond that is put down to their image tokens.

        Raises:
            ValueError: There is no sample without images, or a time is not a positive number.
        """
        texts = [(shape.num_tokens, s) for shape, s in samples if not shape.num_image_tokens]
        if not texts:
            raise ValueError("a cost model is fitted from at least one sample without images")
        for shape, device_s in samples:
            if not (isfinite(device_s) and device_s > 0):
                raise ValueError(f"a pass of {shape.num_tokens} tokens is said to have taken {device_s} s")
        self._fixed_s, self._per_token_s = _fit_line(texts)
        self._per_image_token_s = _fit_slope(
            [
                (shape.num_image_tokens, s - self._fixed_s - self._per_token_s * shape.num_tokens, s)
                for shape, s in samples
                if shape.num_image_tokens
            ]
        )
        self._factor = 1.0
        self._num_passes = len(samples)
        self._residuals.clear()
        self._residuals.extend(device_s / self.predict_s(shape) - 1 for shape, device_s in samples)

    def predict_s(self, shape: Shape) -> float:
        """Device seconds that one pass of this shape will take."""
        return self._factor * (
            self._fixed_s
            + self._per_token_s * shape.num_tokens
            + self._per_image_token_s * shape.num_image_tokens
        )

    def predict_backlog_s(
        self,
        *,
        num_tokens: int,
        num_image_tokens: int = 0,
        num_entries: int,
        max_tokens: int,
        max_entries: int,
    ) -> float:
        """Device seconds for work of this size, cut into passes of at most so many tokens and entries."""
        num_passes = max(ceil(num_tokens / max_tokens), ceil(num_entries / max_entries))
        if num_passes == 0:
            return 0.0
        return num_passes * self.predict_s(
            Shape(
                num_tokens=ceil(num_tokens / num_passes),
                num_image_tokens=ceil(num_image_tokens / num_passes),
            )
        )

    def observe(self, shape: Shape, device_s: float) -> None:
        """Learn from a pass that ran.

        The factor is averaged over logarithms, so that one pass that took a hundred times as long (a
        suspended machine) moves it by 58 % and not by a factor of eleven.
        """
        predicted_s = self.predict_s(shape)
        if not (isfinite(device_s) and device_s > 0 and predicted_s > 0):
            return  # A clock too coarse for the pass teaches nothing, and nonsense would stay for ever.
        self._num_passes += 1
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
        ordered = sorted(self._residuals)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]

    def __repr__(self) -> str:
        fixed_ms, per_token_us = self._factor * self._fixed_s * 1e3, self._factor * self._per_token_s * 1e6
        image_us = self._factor * self._per_image_token_s * 1e6
        image = f" + {image_us:.3g} us an image token" if image_us else ""
        return (
            f"<CostModel {fixed_ms:.3g} ms + {per_token_us:.3g} us a token{image}, "
            f"p99 residual {self.residual():+.0%} over {len(self._residuals)} passes>"
        )


def _fit_line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Non-negative ``(fixed, per_token)`` with the least squared relative error over ``(tokens, seconds)``.

    With two coefficients there are three candidates: the free optimum, and the best on each border.
    """
    # Every point is weighted with 1 / seconds**2, which turns absolute errors into relative ones.
    w = sum(1 / s**2 for _, s in points)
    wt = sum(t / s**2 for t, s in points)
    wtt = sum(t * t / s**2 for t, s in points)
    ws = sum(1 / s for _, s in points)
    wts = sum(t / s for t, s in points)
    determinant = w * wtt - wt * wt
    is_one_size = determinant <= 1e-9 * w * wtt
    if not is_one_size:
        fixed_s = (wtt * ws - wt * wts) / determinant
        per_token_s = (w * wts - wt * ws) / determinant
        if fixed_s >= 0 and per_token_s >= 0:
            return fixed_s, per_token_s
        if per_token_s < 0:
            return ws / w, 0.0
    return 0.0, wts / wtt


def _fit_slope(points: Sequence[tuple[int, float, float]]) -> float:
    """Non-negative seconds a unit with the least squared relative error, 0 without points.

    Args:
        points: Units, the seconds they took, and the seconds that the error is relative to.
    """
    squares = sum((units / scale_s) ** 2 for units, _, scale_s in points)
    products = sum(units * seconds / scale_s**2 for units, seconds, scale_s in points)
    return max(products / squares, 0.0) if points else 0.0
