"""The seam between whoever decides what runs and the process that owns a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from model.images.spec import Alpha, Orientation
from model.types import Features, ModelInfo, PassResult


class Rope(StrEnum):
    """How positions are numbered where rotary positions have three axes (Qwen2-VL, arXiv:2409.12191)."""

    SEQUENTIAL = "sequential"
    """Token after token, images too: how GME's authors compute."""
    MROPE = "mrope"
    """Images by time, row and column: how ms-swift trains, and how vLLM computes."""


class Quantization(StrEnum):
    """What weights are stored in, where that is not what the model computes in."""

    INT8 = "int8"
    """Linear layers in 8 bits: of the text tower, where there are two, and the vision tower is left as it is;
    else of the whole transformer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What is decided about images when a model is loaded. All of it changes vectors."""

    min_tokens: int | None = None
    """Smaller images are scaled up to so many tokens. ``None``: what the family says."""
    max_tokens: int | None = None
    """Larger images are scaled down to so many tokens. ``None``: what the family says."""
    orientation: Orientation = Orientation.EXIF
    alpha: Alpha = Alpha.WHITE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a worker needs to know to load its model. Plain data: it crosses the process border."""

    folder: str
    """A local checkpoint folder; fetching was done before."""
    source: str
    """What the model is called in messages, on its card, and in ``ModelInfo.source``."""
    device: str = "cpu"
    """``cpu``, ``cuda``, ``cuda:1``, ..."""
    dtype: str = "float32"
    """``float32``, ``bfloat16`` or ``float16``, or ``auto``: what suits the device and the architecture."""
    num_threads: int = 1
    """Compute threads of the process; on CPU one a worker, and a worker a core."""
    family: str | None = None
    """Name of the family to read the checkpoint as. ``None``: the one that recognises it."""
    max_tokens: int | None = None
    """Lowers the checkpoint's own limit; raises it, too, for families whose authors stay far below the
    positions that the model has (GME). More than there are positions means all of them."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """Overrides what is known of the checkpoint."""
    max_prepacked_bytes: int = 256 * 1024 * 1024
    """On CPU, linear layers of up to so many bytes together are laid out anew for faster products, which
    costs each worker a copy of them. Larger ones stay pages of the file, shared by all workers."""
    rope: Rope = Rope.SEQUENTIAL
    images: ImageOptions = ImageOptions()
    quantization: Quantization | None = None
    """What the weights are stored in. ``None``: in ``dtype``. It saves memory, not time, and moves vectors a
    little: ``python -m bench.drift`` says how far."""
    pad_passes: bool = False
    """Use length-bucketed padding even where packing works (for comparisons). Two towers always pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """What torch holds of a CUDA device's memory, as its allocator counts."""

    allocated_bytes: int
    """In tensors."""
    reserved_bytes: int
    """Taken from the driver: in tensors, or kept for those to come."""
    peak_allocated_bytes: int
    """The most that was in tensors at once since the process started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatistics:
    """What a worker tells of itself, read at any time."""

    is_ready: bool
    """It takes passes."""
    pid: int | None
    """Of its process. ``None``: it has none."""
    num_restarts: int
    """How often its process was started again."""
    num_passes: int
    """Passes that gave rows, of all its processes, those of warming up and of measuring included."""
    rss_bytes: int | None
    """Resident memory of the process, shared pages included."""
    device: str = "cpu"
    """Where it computes, as in ``LoadOptions.device``."""
    gpu_uuid: str | None = None
    """Which card that is, as NVML names it. ``None``: it is no card, or the worker has not loaded."""
    device_s: float = 0.0
    """Device time of these passes."""
    num_out_of_memory: int = 0
    """Passes that did not fit."""
    memory: DeviceMemory | None = None
    """After the latest answer. ``None``: it has no CUDA device, or has not loaded."""


OnStage = Callable[[str], None]
"""Told what a loading worker is doing: ``"loading weights 43%"``."""


class Worker(Protocol):
    """Where an encoder lives. It is handed passes and never sees a request.

    Several may be out at a time; it computes them one after the other, urgent ones first.
    """

    @property
    def can_interrupt(self) -> bool:
        """Whether a pass that may interrupt gains anything by it."""
        ...

    async def start(self, on_stage: OnStage) -> ModelInfo:
        """Load the model and warm it up; returns when the first pass may come.

        Raises:
            CheckpointError: The checkpoint cannot be loaded; the message says what to do.
        """
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a pass may be run now."""
        ...

    async def wait_ready(self) -> None:
        """Return when a pass may be run: at once, or after a restart has finished."""
        ...

    async def run(
        self,
        features: Sequence[Features],
        *,
        timeout_s: float | None = None,
        is_urgent: bool = False,
        may_interrupt: bool = False,
    ) -> PassResult:
        """Run one pass.

        Args:
            features: What to encode together.
            timeout_s: A process that works on the pass for longer is taken to hang, and ended. Time that it
                spends on other passes is not counted. ``None``: the worker's own limit, which holds in any
                case.
            is_urgent: It runs before all that are not, and nothing interrupts it: mark what holds a query.
            may_interrupt: Being urgent, it need not wait for the end of a pass that is not. It then runs
                between two blocks of that one, whose vectors stay the same bit for bit.

        Raises:
            PassNotBegunError: The process ended, or is not there, and had not come to the pass.
            WorkerDiedError: The process ended; it is being restarted, and ``wait_ready`` tells when.
            PassFailedError: The encoder raised; the worker lives.
        """
        ...

    async def stop(self) -> None:
        """End the worker. Passes that are out are abandoned."""
        ...

    def statistics(self) -> WorkerStatistics:
        """A snapshot of the worker's state."""
        ...
