"""Who runs next, and when. Standard library only: no torch, no HTTP, and a clock that is handed in."""

from batching.batcher import Batcher
from batching.cost import CostFigures, CostModel, Shape
from batching.errors import (
    BatchingError,
    DeadlineError,
    DeadlineUnmeetableError,
    EntryFailedError,
    NoRunnersError,
    QueueFullError,
    RunnerLostError,
    RunnerMemoryError,
    ShuttingDownError,
    SubmissionTooLargeError,
)
from batching.limits import Limits
from batching.runner import Runner, RunResult
from batching.scheduler import Scheduler
from batching.statistics import LaneLoad, LaneStatistics, SchedulerStatistics
from batching.types import Entry, Lane, Pass, PassReport, Slot, SubmissionOutcome, WorkItem

__all__ = [
    "Batcher",
    "BatchingError",
    "CostFigures",
    "CostModel",
    "DeadlineError",
    "DeadlineUnmeetableError",
    "Entry",
    "EntryFailedError",
    "Lane",
    "LaneLoad",
    "LaneStatistics",
    "Limits",
    "NoRunnersError",
    "Pass",
    "PassReport",
    "QueueFullError",
    "RunResult",
    "Runner",
    "RunnerLostError",
    "RunnerMemoryError",
    "Scheduler",
    "SchedulerStatistics",
    "Shape",
    "ShuttingDownError",
    "Slot",
    "SubmissionOutcome",
    "SubmissionTooLargeError",
    "WorkItem",
]
