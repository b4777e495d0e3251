"""What ``laneway check --device`` finds out: how long passes take on this machine, and what follows from it.

The model is loaded as ``laneway serve`` loads it, so the figures are those that its scheduler begins with.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from app.calibration import INPUT_TOKENS
from app.engine import Engine, OnStage, PassTimes
from app.launch import check_settings
from app.settings import Settings
from batching import Shape
from model import ModelInfo

MS = 1_000
US = 1_000_000
SHORT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was found out about one model on one machine."""

    info: ModelInfo
    num_workers: int
    can_interrupt: bool
    """Queries can run between two layers of a pass of documents."""
    times: PassTimes


def check_device(settings: Settings, on_stage: OnStage) -> Measured:
    """Load the model, time its passes, and end the workers again.

    Raises:
        ModelError: It cannot be loaded.
    """
    return asyncio.run(_check(settings, on_stage))


async def _check(settings: Settings, on_stage: OnStage) -> Measured:
    engine = Engine.from_settings(settings, on_stage=on_stage, accept=partial(check_settings, settings))
    try:
        await engine.start()
        statistics = engine.statistics()
        return Measured(
            info=engine.info,
            num_workers=len(statistics.workers),
            can_interrupt=engine.can_interrupt,
            times=engine.pass_times,
        )
    finally:
        await engine.stop(drain_s=0)


def describe(measured: Measured) -> list[str]:
    """The lines to print."""
    return [*_of_model(measured), "", *_of_cost(measured.times), "", *_of_bounds(measured)]


def _of_model(measured: Measured) -> list[str]:
    info = measured.info
    workers = "1 worker" if measured.num_workers == 1 else f"{measured.num_workers} workers"
    return _aligned(
        [
            ("model", f"{info.source}, {info.num_parameters / 1e6:.1f} million parameters"),
            ("device", f"{info.device}, {info.dtype}, {workers}"),
            ("passes", info.packing_note),
        ]
    )


def _of_cost(times: PassTimes) -> list[str]:
    cost = times.cost.figures()
    terms = [f"{cost.fixed_s * MS:.2f} ms", f"{cost.per_token_s * US:.1f} us a token"]
    if cost.per_square_s:
        terms.append(f"{cost.per_square_s * US:.5f} us for each unit of an input's squared length")
    if cost.per_image_token_s:
        terms.append(f"{cost.per_image_token_s * US:.1f} us for each token of an image besides")
    floor = f", and never under {cost.floor_s * MS:.1f} ms" if cost.floor_s else ""
    rows = [("tokens", "longest input", "image tokens", "measured ms", "predicted ms", "off by")]
    for shape, device_s in times.samples:
        predicted_s = times.cost.predict_s(shape)
        rows.append(
            (
                str(shape.num_tokens),
                str(_longest(shape)),
                str(shape.num_image_tokens or "-"),
                f"{device_s * MS:.2f}",
                f"{predicted_s * MS:.2f}",
                f"{device_s / predicted_s - 1:+.0%}",
            )
        )
    return [f"A pass takes {' + '.join(terms)}{floor}.", "", *_table(rows)]


def _longest(shape: Shape) -> int:
    """Of inputs that are all about as long, but for a rest: how these passes were made."""
    return round(shape.num_squared / shape.num_tokens)


def _of_bounds(measured: Measured) -> list[str]:
    cost, limits = measured.times.cost, measured.times.limits

    def tokens_in(pass_s: float) -> int:
        return cost.pass_tokens(pass_s, max_tokens=limits.max_pass_tokens)

    rows = [
        (name, f"{pass_s * MS:g} ms", f"{tokens_in(pass_s):,} tokens of short texts" if pass_s else "-", what)
        for name, pass_s, what in (
            ("max_pass_ms", limits.max_pass_s, "the longest pass with queries"),
            ("fill_ms", limits.fill_s, "up to which documents join them"),
            ("max_document_pass_ms", limits.max_document_pass_s, "the longest pass of documents"),
        )
    ]
    full_tokens = tokens_in(limits.max_document_pass_s)
    full_s = cost.predict_s(Shape(num_tokens=full_tokens, num_squared=full_tokens * INPUT_TOKENS))
    rate = measured.num_workers * full_tokens / full_s
    short_s = cost.predict_s(Shape(num_tokens=SHORT_TOKENS, num_squared=SHORT_TOKENS**2))
    may_break_in = measured.can_interrupt and limits.interruption_share > 0
    longest_s = max(limits.max_pass_s if may_break_in else limits.max_document_pass_s, cost.least_bound_s)
    how = (
        "break in between two layers, most often at once"
        if may_break_in
        else "wait for the pass that runs; it may not be interrupted (interruption_share is 0)"
        if measured.can_interrupt
        else "wait for the pass that runs; it cannot be interrupted"
    )
    return [
        *_table(rows),
        *([f"Note: {note}."] if (note := measured.times.note) else []),
        "",
        f"Documents in full passes: about {rate:,.0f} tokens a second.",
        f"A query of {SHORT_TOKENS} tokens alone: {short_s * MS:.1f} ms. Among documents queries {how}:",
        f"about {longest_s * MS:.0f} ms of waiting at the longest before they run, while all that wait fit "
        "into one pass and no other lane is owed a turn.",
    ]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
