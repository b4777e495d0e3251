"""Where an encoder lives: in this process, or in one of its own. Importing this never loads torch."""

from model.worker.inline import InlineWorker
from model.worker.process import Backoff, ProcessWorker, WorkerState
from model.worker.protocol import (
    DeviceMemory,
    ImageOptions,
    LoadOptions,
    OnStage,
    Quantization,
    Rope,
    Worker,
    WorkerStatistics,
)

__all__ = [
    "Backoff",
    "DeviceMemory",
    "ImageOptions",
    "InlineWorker",
    "LoadOptions",
    "OnStage",
    "ProcessWorker",
    "Quantization",
    "Rope",
    "Worker",
    "WorkerState",
    "WorkerStatistics",
]
