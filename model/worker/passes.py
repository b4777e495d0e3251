"""One pass through an encoder, the same in this process and in one of its own.

The encoder itself stands behind ``Encoder`` and comes from a loader that is named by its import path, so
that nothing here loads torch before the worker wants it.
"""

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from model.interruption import Safepoints, safepoints
from model.types import Features, ModelInfo, PassResult
from model.worker.protocol import LoadOptions, OnStage

DEFAULT_LOADER = "model.loading:load_encoder"


class Encoder(Protocol):
    """A loaded, warm model."""

    @property
    def info(self) -> ModelInfo:
        """What the rest of the program may know of it."""
        ...

    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        """Run one pass: ``[B, D]``, in the order of the features."""
        ...

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """Tokens that a pass of these inputs computes beside theirs."""
        ...


Loader = Callable[[LoadOptions, OnStage], Encoder]


class Fault(Enum):
    """What an exception under a pass means for the worker."""

    PASS_FAILED = auto()
    """This pass went wrong; the next may come."""
    OUT_OF_MEMORY = auto()
    """The pass did not fit; a smaller one may."""
    DEVICE_LOST = auto()
    """Every later call would fail as well; only a new process helps."""


def import_loader(path: str) -> Loader:
    """Import a loader by its path, ``module:function``."""
    module, _, function = path.partition(":")
    return cast(Loader, getattr(importlib.import_module(module), function))


@dataclass(slots=True, kw_only=True)
class Interruptions:
    """Counts the passes that ran between two blocks of another."""

    count: int = 0
    total_s: float = 0.0

    def add(self, elapsed_s: float) -> None:
        """Count one more that took so long."""
        self.count += 1
        self.total_s += elapsed_s


def run_pass(
    encoder: Encoder,
    features: Sequence[Features],
    *,
    points: Safepoints | None = None,
    interruptions: Interruptions | None = None,
    elapsed_s: Callable[[], float] | None = None,
) -> PassResult:
    """Run one pass, time it, and look for rows that must not be sent.

    Args:
        encoder: What computes it.
        features: What to encode together.
        points: What happens between its blocks. ``None``: nothing, also where it runs inside another pass.
        interruptions: Where ``points`` counts what it does.
        elapsed_s: A watch that runs (see ``start_watch``). ``None``: one of this process.

    Raises:
        ValueError: The encoder gave rows of another shape or type than its info promises.
    """
    interruptions = interruptions or Interruptions()
    elapsed_s = elapsed_s or start_watch()
    with safepoints(points):
        rows = encoder.encode(features)
    # Two clocks where a device has its own: their difference must not make a time negative.
    device_s = max(0.0, elapsed_s() - interruptions.total_s)
    expected = (len(features), encoder.info.dimension)
    if rows.shape != expected or rows.dtype != np.float32:
        raise ValueError(f"the encoder gave {rows.dtype} rows of shape {rows.shape}, not float32 {expected}")
    is_finite = np.isfinite(rows).all(axis=1)
    return PassResult(
        rows=np.ascontiguousarray(rows),
        device_s=device_s,
        nonfinite_rows=tuple(np.flatnonzero(~is_finite).tolist()),
        num_interruptions=interruptions.count,
        interrupted_s=interruptions.total_s,
        num_padding_tokens=encoder.num_padding_tokens(features),
    )


def start_watch(device: str = "cpu") -> Callable[[], float]:
    """Start a watch; calling it gives the seconds since.

    On CUDA it starts when the device comes to it, behind everything that was launched before: what an
    interruption takes does not include the blocks that were launched ahead of it.

    Args:
        device: Where what is timed runs, as in ``LoadOptions.device``.
    """
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        started_s = time.perf_counter()
        return lambda: time.perf_counter() - started_s
    stream = torch.cuda.current_stream(device)
    started = torch.cuda.Event(enable_timing=True)
    started.record(stream)

    def elapsed_s() -> float:
        ended = torch.cuda.Event(enable_timing=True)
        ended.record(stream)
        ended.synchronize()
        return started.elapsed_time(ended) / 1000

    return elapsed_s


def judge(error: Exception, device: str) -> Fault:
    """Tell what an exception under a pass means.

    A device-side assert or an illegal access leaves a CUDA context in which every call fails until the
    process ends (CUDA C++ Programming Guide, "Error Checking"). The wording of the error does not tell
    such an error from a harmless one, so the device is asked.

    Args:
        error: What the encoder raised.
        device: Where it ran, as in ``LoadOptions.device``.
    """
    # Where torch was never loaded, the error is none of its.
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return Fault.OUT_OF_MEMORY
    # The CPU allocator has no error type of its own (c10/core/impl/alloc_cpu.cpp).
    if isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error):
        return Fault.OUT_OF_MEMORY
    if torch and device.startswith("cuda"):
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return Fault.DEVICE_LOST
    return Fault.PASS_FAILED


def release_memory(device: str) -> None:
    """Give cached device memory back after a pass that did not fit.

    Call it outside the ``except`` block: inside, the traceback still holds the tensors of the pass.
    """
    torch = sys.modules.get("torch")
    if torch and device.startswith("cuda"):
        torch.cuda.empty_cache()
