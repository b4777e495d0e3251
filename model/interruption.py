"""How a pass tells whoever runs it that it has come to a place where another may run in between.

Such places lie before each block of a transformer, and within blocks between two products (``fused.py``):
what was computed so far are a few tensors that only this pass reads. So the thread that computes it may
leave it there, compute another from end to end, and go on: the law of this file is that the pass which was
left gives the same bits (arXiv:2410.01228 calls such places safepoints).

Nothing here needs torch: ``blocks.py`` knows where blocks begin, ``worker/main.py`` what to do there.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Safepoints:
    """What happens at the safepoints of a pass."""

    on_safepoint: Callable[[], None]
    """Called at every such place, in the thread that computes the pass. Must not raise an ``Exception``: it
    would be taken for one of the encoder."""
    max_blocks_ahead: int | None = None
    """Blocks that may have been launched on a CUDA device and not be done when ``on_safepoint`` is called: an
    interruption waits for these. ``None``: as many as the launching thread is ahead."""


_safepoints: ContextVar[Safepoints | None] = ContextVar("safepoints", default=None)


@contextmanager
def safepoints(points: Safepoints | None) -> Generator[None]:
    """What is computed within stops at ``points``; with ``None`` at none, whatever it is within itself."""
    token = _safepoints.set(points)
    try:
        yield
    finally:
        _safepoints.reset(token)


def current_safepoints() -> Safepoints | None:
    """Those of the pass that is being computed."""
    return _safepoints.get()


def pause() -> None:
    """Come to a place where the pass that is being computed may be left, if it is one that may be."""
    if (points := current_safepoints()) is not None:
        points.on_safepoint()
