"""Draws the line of a cost model through measured passes: least squares, by hand, of a few columns.

Relative errors are made small, not absolute ones: a short pass of queries must be predicted as well as a long
one of documents. No coefficient becomes negative. No clock, no state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

_MIN_FLOOR_GAIN = 0.5
"""A floor must halve the squared error, or it would be drawn through the noise of any handful of samples."""

_MAX_FLOOR_SPREAD = 1.5
"""How far from each other rows on a floor may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement of a linear model."""

    x: tuple[float, ...]
    """What each coefficient is multiplied with."""
    y: float
    """What should come out."""
    scale: float
    """What the error is relative to."""
    weight: float = 1.0


def fit_with_floor(rows: Sequence[Row], *, num_columns: int) -> tuple[float, tuple[float, ...]]:
    """The floor and the coefficients that suit the rows best, which stand in the order of their size.

    Candidates for the floor are the means of the two, three, ... smallest rows. 0 unless a floor is clearly
    better.
    """
    best = (0.0, fit_nonnegative(rows, num_columns=num_columns))
    least = _squared_error(rows, *best) * _MIN_FLOOR_GAIN
    # At least three rows are left for the slope: two are on a line whatever they say.
    for num_flat in range(2, len(rows) - 2):
        flat = rows[:num_flat]
        if flat[-1].y > _MAX_FLOOR_SPREAD * flat[0].y:
            break
        floor = sum(row.weight * row.y for row in flat) / sum(row.weight for row in flat)
        coefficients = fit_nonnegative(rows[num_flat:], num_columns=num_columns)
        if (error := _squared_error(rows, floor, coefficients)) < least:
            best, least = (floor, coefficients), error
    return best


def fit_nonnegative(rows: Sequence[Row], *, num_columns: int) -> tuple[float, ...]:
    """Non-negative coefficients with the least squared relative error; 0 for what the rows do not tell.

    The best non-negative solution is the free one of some subset of the columns. There are few columns,
    so all subsets are tried. Among equals the first wins: fewer coefficients, and earlier ones.
    """
    best, least = (0.0,) * num_columns, _squared_error(rows, 0.0, (0.0,) * num_columns)
    for size in range(1, num_columns + 1):
        for columns in combinations(range(num_columns), size):
            solved = _solve_least_squares(rows, columns)
            if solved is None or min(solved) < 0:
                continue
            candidate = tuple(dict(zip(columns, solved, strict=True)).get(i, 0.0) for i in range(num_columns))
            error = _squared_error(rows, 0.0, candidate)
            # Rounding alone must not pay for another coefficient.
            if error < least - 1e-12 * len(rows):
                best, least = candidate, error
    return best


def _squared_error(rows: Iterable[Row], floor: float, coefficients: Sequence[float]) -> float:
    return sum(
        row.weight * ((max(floor, _dot(row.x, coefficients)) - row.y) / row.scale) ** 2 for row in rows
    )


def _solve_least_squares(rows: Sequence[Row], columns: Sequence[int]) -> list[float] | None:
    """Coefficients of these columns by the normal equations; ``None`` if a column depends on others."""
    size = len(columns)
    factors = [row.weight**0.5 / row.scale for row in rows]
    weighted = [
        ([row.x[i] * factor for i in columns], row.y * factor)
        for row, factor in zip(rows, factors, strict=True)
    ]
    norms = [sum(x[i] ** 2 for x, _ in weighted) ** 0.5 for i in range(size)]
    if not rows or min(norms) == 0:
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
