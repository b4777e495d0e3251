"""Expressions of dashboards, written by functions, and what an expression names, read by a parser.

Law: every selector of a dashboard carries its scope, so that the variables at the top of the page hold for
all of it; and a quotient drops what it would divide by zero, so that quiet is an empty panel, never ``NaN``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser

RATE_INTERVAL = "$__rate_interval"
"""Grafana's: four scrapes at least, and never shorter than a pixel."""

_VARIABLES = {RATE_INTERVAL: "5m", "$__range": "1h", "$__interval": "1m"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What part of the world a panel looks at, as label matchers."""

    matchers: tuple[str, ...]

    def select(self, series: str, *matchers: str) -> str:
        """The series within the scope."""
        return f"{series}{{{', '.join((*self.matchers, *matchers))}}}"

    def rate(self, counter: str, *matchers: str) -> str:
        """Growth a second, series by series."""
        return f"rate({self.select(counter, *matchers)}[{RATE_INTERVAL}])"

    def sum_rate(self, counter: str, *matchers: str, by: str = "") -> str:
        """Growth a second of all of them together, or by labels."""
        return f"sum{_by(by)}({self.rate(counter, *matchers)})"

    def sum_increase(self, counter: str, *matchers: str, by: str = "", within: str = RATE_INTERVAL) -> str:
        """How many times something rare has happened.

        Rounded: ``increase`` extrapolates to the ends of the interval, and finds 1.01 events for one.
        """
        return f"round(sum{_by(by)}(increase({self.select(counter, *matchers)}[{within}])))"

    def aggregate(self, operator: str, gauge: str, *matchers: str, by: str = "") -> str:
        """``sum``, ``max``, ``min`` or ``count`` of gauges, in all or by labels."""
        return f"{operator}{_by(by)}({self.select(gauge, *matchers)})"

    def quantile(self, quantile: float, histogram: str, *matchers: str, by: str = "") -> str:
        """A quantile of everything that the histogram saw within the rate interval."""
        labels = f"{by}, le" if by else "le"
        rates = self.rate(f"{histogram}_bucket", *matchers)
        return f"histogram_quantile({quantile:g}, sum by ({labels}) ({rates}))"

    def mean(self, histogram: str, *matchers: str, by: str = "") -> str:
        """The mean of what the histogram saw: exact, where a quantile is between two buckets."""
        return divide(
            self.sum_rate(f"{histogram}_sum", *matchers, by=by),
            self.sum_rate(f"{histogram}_count", *matchers, by=by),
        )

    def share(self, counter: str, part: str, *matchers: str, by: str = "") -> str:
        """The part of a counter's growth that also has the label matcher ``part``; 0 where none has."""
        whole = self.sum_rate(counter, *matchers, by=by)
        return divide(f"({or_zero(self.sum_rate(counter, part, *matchers, by=by), whole)})", whole)


def divide(dividend: str, divisor: str) -> str:
    """A quotient without the series whose divisor is zero."""
    return f"{dividend} / ({divisor} > 0)"


def or_zero(expression: str, like: str) -> str:
    """The expression, and zero for whatever ``like`` has beside it: a counter begins with its first event."""
    return f"{expression} or {like} * 0"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


# Reading ---------------------------------------------------------------------------------------------------


def plain(expression: str) -> str:
    """The expression as Prometheus reads it: Grafana's intervals as durations, its variables as any text."""
    for variable, duration in _VARIABLES.items():
        expression = expression.replace(variable, duration)
    return re.sub(r'=~"\$\w+(\|?)"', r'=~".+\1"', expression)


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every selector of an expression.

    Raises:
        ValueError: It is no PromQL.
    """
    return [node for node, _ in walk(expression) if isinstance(node, promql_parser.VectorSelector)]


def groupings(expression: str) -> Iterator[tuple[frozenset[str], frozenset[str], frozenset[str]]]:
    """Every aggregation by labels.

    Yields:
        Its labels, the names of the series below it, and the labels that ``label_replace`` makes below it.

    Raises:
        ValueError: It is no PromQL.
    """
    nodes = list(walk(expression))
    for aggregate, _ in nodes:
        if not isinstance(aggregate, promql_parser.AggregateExpr) or aggregate.modifier is None:
            continue
        # "without" can name what is not there.
        if aggregate.modifier.type != promql_parser.AggModifierType.By:
            continue
        below = [node for node, above in nodes if any(one is aggregate for one in above)]
        names = {node.name or "" for node in below if isinstance(node, promql_parser.VectorSelector)}
        made = {label for node in below for label in _made_labels(node)}
        yield frozenset(aggregate.modifier.labels), frozenset(names), frozenset(made)


def _made_labels(node: promql_parser.Expr) -> Iterator[str]:
    if isinstance(node, promql_parser.Call) and node.func.name == "label_replace":
        label = node.args[1]
        assert isinstance(label, promql_parser.StringLiteral), "the second argument names a label"
        yield label.val


def walk(expression: str) -> Iterator[tuple[promql_parser.Expr, tuple[promql_parser.Expr, ...]]]:
    """Every node of an expression, with the nodes above it, the nearest first.

    A range selector comes as itself, and then as the selector in it.

    Raises:
        ValueError: It is no PromQL.
    """
    pending: list[tuple[promql_parser.Expr, tuple[promql_parser.Expr, ...]]]
    pending = [(promql_parser.parse(plain(expression)), ())]
    while pending:
        node, above = pending.pop()
        yield node, above
        pending.extend((child, (node, *above)) for child in _children(node))


def _children(node: promql_parser.Expr) -> list[promql_parser.Expr]:
    match node:
        case promql_parser.BinaryExpr():
            return [node.lhs, node.rhs]
        case promql_parser.Call():
            return list(node.args)
        case promql_parser.MatrixSelector():
            return [node.vector_selector]
        case promql_parser.AggregateExpr():
            return [node.expr] if node.param is None else [node.expr, node.param]
        case promql_parser.ParenExpr() | promql_parser.SubqueryExpr() | promql_parser.UnaryExpr():
            return [node.expr]
        case _:
            return []
