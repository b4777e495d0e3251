"""The jobs that a worker process was sent and has not answered, and what can be said of them from outside.

The process computes one pass at a time: urgent ones first, in the order they were sent, then the others in
theirs. Only an urgent one may run in the middle of another. That is enough to know which can have begun.

Law of this file: it decides only; it reads no clock and wakes nobody but callers who get their answer.
"""

import asyncio
from dataclasses import dataclass

from model.types import PassResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One pass that was sent to a worker process."""

    pid: int
    """The process."""
    pass_id: int
    num_inputs: int
    num_tokens: int
    timeout_s: float
    """What the process may take for it, other passes not counted."""
    is_urgent: bool
    answer: "asyncio.Future[PassResult]"

    def succeed(self, result: PassResult) -> None:
        """Give its caller the rows."""
        if not self.answer.done():  # its caller may have gone away
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        """Give its caller an error."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def __str__(self) -> str:
        return f"pass {self.pass_id} ({self.num_inputs} inputs, {self.num_tokens} tokens)"


class Outstanding:
    """The jobs that were sent and not answered, and what can be said of them without asking the process."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        """In the order in which they were sent."""
        self._progress_s = 0.0
        """When the process last answered a job, or was given one while it had none."""

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job, *, now_s: float) -> None:
        """A job was sent."""
        if not self._jobs:
            self._progress_s = now_s
        self._jobs[job.pass_id] = job

    def find(self, pass_id: int) -> Job | None:
        """The job with this id, if it is out."""
        return self._jobs.get(pass_id)

    def remove(self, job: Job, *, now_s: float) -> None:
        """A job was answered."""
        del self._jobs[job.pass_id]
        self._progress_s = now_s

    def clear(self) -> list[Job]:
        """No job will be answered any more; returns those that were out."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        return jobs

    def possibly_begun(self) -> list[Job]:
        """The first of either kind; not one that was sent after an urgent job that is out before it."""
        begun: list[Job] = []
        for job in self._jobs.values():
            if job.is_urgent:
                return [*begun, job]
            if not begun:
                begun.append(job)
        return begun

    def deadline_s(self) -> float | None:
        """When the process is taken to hang: it owes an answer within the time of those it can be at.

        A job that waits behind another therefore costs none of its own time, and one that is interrupted
        is given its time anew with the answer to the interrupting one. ``None``: it owes nothing.
        """
        begun = self.possibly_begun()
        return self._progress_s + sum(job.timeout_s for job in begun) if begun else None
