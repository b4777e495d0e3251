"""A driver of GPUs that does not exist, and a clock for whoever asks it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from app.gpus import GpuReading, Gpus

H200 = GpuReading(
    index=0,
    uuid="GPU-6b3a34f3-65b1-d0f0-7f4c-6ac2a8e9f2c4",
    name="NVIDIA H200",
    utilization_ratio=0.75,
    memory_used_bytes=30_000_000_000,
    memory_total_bytes=150_000_000_000,
    power_watts=412.5,
    temperature_celsius=61.0,
)


@dataclass
class FakeNvml:
    """A driver with cards, which raises what the real one would. A handle is the card's place."""

    cards: list[GpuReading] = field(default_factory=lambda: [H200])
    refusals: dict[str, int] = field(default_factory=dict[str, int])
    """Functions that fail, and with what."""
    num_connected: int = 0
    num_readings: int = 0
    on_read: Callable[[], object] = lambda: None

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def _answer(self, function: str) -> None:
        if function in self.refusals:
            raise pynvml.NVMLError(self.refusals[function])
        if function not in ("nvmlInit", "nvmlShutdown") and not self.num_connected:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def nvmlInit(self) -> None:
        self._answer("nvmlInit")
        self.num_connected += 1

    def nvmlShutdown(self) -> None:
        self._answer("nvmlShutdown")
        self.num_connected -= 1

    def nvmlDeviceGetCount(self) -> int:
        self.on_read()
        self._answer("nvmlDeviceGetCount")
        self.num_readings += 1
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        self._answer("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        self._answer("nvmlDeviceGetUUID")
        return self.cards[handle].uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:
        self._answer("nvmlDeviceGetName")
        return self.cards[handle].name

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        self._answer("nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=round(100 * (self.cards[handle].utilization_ratio or 0)), memory=99)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        self._answer("nvmlDeviceGetMemoryInfo")
        card = self.cards[handle]
        return SimpleNamespace(total=card.memory_total_bytes, used=card.memory_used_bytes, free=1)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._answer("nvmlDeviceGetPowerUsage")
        return round(1000 * (self.cards[handle].power_watts or 0))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        self._answer("nvmlDeviceGetTemperature")
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return round(self.cards[handle].temperature_celsius or 0)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def gpus_of(nvml: FakeNvml) -> tuple[Gpus, Clock]:
    clock = Clock()
    return Gpus(load=lambda: nvml, clock=clock), clock
