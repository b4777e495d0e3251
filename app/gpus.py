"""What NVIDIA's driver tells of its GPUs, by NVML, the library that nvidia-smi asks.

Laws: what the driver refuses is ``None``, never 0. A card that is cut in slices (MIG) has no utilisation, and
a container that was given a slice may not ask for the card. And nothing here is asked on the event loop: a
card that has fallen off the bus can keep its driver waiting for seconds.
"""

import asyncio
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Protocol, TypeVar, cast

from app.threads import in_daemon_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_AGE_S = 1.0
"""A reading is asked for again when it is older."""
MAX_WAIT_S = 0.5
"""Whoever wants a reading waits so long; a driver that takes longer answers the next one who asks."""
STALE_AFTER_S = 30.0
"""A reading that is older says nothing of now."""
RETRY_AFTER_S = 60.0
"""A driver that was not there may be loaded later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU at one moment. ``None``: its driver does not tell."""

    index: int
    """NVML's, by the place on the bus. CUDA may count the same cards in another order."""
    uuid: str
    name: str
    utilization_ratio: float | None
    """Part of the driver's last sampling period, up to a second, in which anything ran."""
    memory_used_bytes: int | None
    """Of all processes, and what the driver keeps for itself."""
    memory_total_bytes: int | None
    power_watts: float | None
    temperature_celsius: float | None


class Utilization(Protocol):
    """``nvmlUtilization_t``, as far as it is read here."""

    gpu: int
    """Per cent."""


class Memory(Protocol):
    """``nvmlMemory_t``, in bytes."""

    total: int
    used: int


class Nvml(Protocol):
    """The module ``pynvml`` (nvidia-ml-py 13), as far as it is used here. All of it raises ``NVMLError``."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int

    def nvmlInit(self) -> None: ...  # noqa: D102 - described in NVIDIA's NVML API reference, like all below
    def nvmlShutdown(self) -> None: ...  # noqa: D102
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: D102
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: D102
    def nvmlDeviceGetUUID(self, handle: object) -> str: ...  # noqa: D102
    def nvmlDeviceGetName(self, handle: object) -> str: ...  # noqa: D102
    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Utilization: ...  # noqa: D102
    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Memory: ...  # noqa: D102
    def nvmlDeviceGetPowerUsage(self, handle: object) -> int: ...  # noqa: D102 - milliwatts
    def nvmlDeviceGetTemperature(self, handle: object, sensor: int) -> int: ...  # noqa: D102 - degrees Celsius


def load_nvml() -> Nvml:
    """The real one. Importing it always works; ``nvmlInit`` tells whether there is a driver."""
    return cast("Nvml", importlib.import_module("pynvml"))


class Gpus:
    """Owns the connection to the driver, and the last reading of every GPU."""

    def __init__(
        self, *, load: Callable[[], Nvml] = load_nvml, clock: Callable[[], float] = monotonic
    ) -> None:
        """Ask nothing yet.

        Args:
            load: Where NVML comes from; called in a thread.
            clock: Monotonic seconds.
        """
        self._load = load
        self._clock = clock
        self._nvml: Nvml | None = None
        """``None``: not connected. Touched by the one thread that reads."""
        self._complaint: str | None = None
        self._reading: asyncio.Task[None] | None = None
        self._latest: tuple[GpuReading, ...] = ()
        self._latest_s = -inf
        self._due_s = -inf

    def __repr__(self) -> str:
        """What it knows."""
        return f"<Gpus: {len(self._latest)} read {self._clock() - self._latest_s:.1f} s ago>"

    @property
    def latest(self) -> tuple[GpuReading, ...]:
        """The last reading, without asking for another; empty where there is no GPU, or no recent reading."""
        return self._latest if self._clock() - self._latest_s <= STALE_AFTER_S else ()

    async def refresh(self) -> tuple[GpuReading, ...]:
        """Return a reading of this second, or the last one there is if the driver takes too long."""
        if self._clock() >= self._due_s:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read(), name="read the GPUs")
            # The task is not cancelled with whoever waits for it: others wait for it, too.
            await asyncio.wait({self._reading}, timeout=MAX_WAIT_S)
        return self.latest

    async def _read(self) -> None:
        try:
            readings = await in_daemon_thread(self._ask, name="nvml")
        except Exception as error:  # the binding's own: a name that is no UTF-8, a library that does not load
            self._complain(f"{type(error).__name__}: {error}")
            readings = None
        self._latest, self._latest_s = readings or (), self._clock()
        self._due_s = self._latest_s + (RETRY_AFTER_S if readings is None else MAX_AGE_S)

    def _ask(self) -> tuple[GpuReading, ...] | None:
        """Read all GPUs; ``None``: there is no driver to ask."""
        nvml = self._nvml or self._load()
        try:
            if self._nvml is None:
                nvml.nvmlInit()
                self._nvml, self._complaint = nvml, None
            return tuple(read_gpus(nvml))
        except nvml.NVMLError as error:
            if self._nvml is not None:  # the driver was unloaded, or replaced by another version
                self._nvml = None
                with suppress(nvml.NVMLError):
                    nvml.nvmlShutdown()
            self._complain(str(error))
            return None

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            logger.info("no metrics of GPUs: %s", complaint)


def read_gpus(nvml: Nvml) -> Iterator[GpuReading]:
    """Read every GPU that may be asked for its name.

    Raises:
        NVMLError: The driver is gone.
    """
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError as error:
            logger.debug("GPU %d cannot be read: %s", index, error)
            continue
        yield _read_gpu(nvml, handle, index=index, uuid=uuid, name=name)


def _read_gpu(nvml: Nvml, handle: object, *, index: int, uuid: str, name: str) -> GpuReading:
    def ask(question: Callable[[], T]) -> T | None:
        try:
            return question()
        except nvml.NVMLError:
            return None

    utilization = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    celsius = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return GpuReading(
        index=index,
        uuid=uuid,
        name=name,
        utilization_ratio=None if utilization is None else utilization.gpu / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        power_watts=None if milliwatts is None else milliwatts / 1000,
        temperature_celsius=None if celsius is None else float(celsius),
    )
