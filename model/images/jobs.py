"""Images that wait to be decoded, and which of them is next: pure.

Rule 1: queries before documents.
Rule 2: among each of these, groups take turns. A group is what one request brings, so that a request of a
hundred costly images delays the next request by one image and not by a hundred.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from model.images.spec import DecodedImage


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One image file, and whoever waits for its pixels."""

    data: bytes
    is_query: bool
    group: Hashable
    """Whoever brought it; groups take turns."""
    answer: "asyncio.Future[DecodedImage]"
    num_attempts: int = 0

    def finish(self, image: DecodedImage) -> None:
        """Answer, if somebody still waits."""
        if not self.answer.done():
            self.answer.set_result(image)

    def fail(self, error: Exception) -> None:
        """The same, with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _Turns:
    """Jobs of one kind. The first group is the next one's turn; each keeps the order its jobs came in."""

    def __init__(self) -> None:
        self._groups: OrderedDict[Hashable, OrderedDict[Job, None]] = OrderedDict()
        """None of them is empty: what nobody waits for takes no memory."""

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, job: Job) -> None:
        self._groups.setdefault(job.group, OrderedDict())[job] = None

    def add_first(self, job: Job) -> None:
        self.add(job)
        self._groups[job.group].move_to_end(job, last=False)
        self._groups.move_to_end(job.group, last=False)

    def discard(self, job: Job) -> None:
        group = self._groups.get(job.group)
        if group is not None and job in group:
            del group[job]
            if not group:
                del self._groups[job.group]

    def take(self) -> Job | None:
        if not self._groups:
            return None
        key, group = self._groups.popitem(last=False)
        job, _ = group.popitem(last=False)
        if group:
            self._groups[key] = group  # behind all others
        return job


class WaitingJobs:
    """Owns the jobs that no process has taken yet."""

    def __init__(self) -> None:
        self._queries = _Turns()
        self._documents = _Turns()

    @property
    def num_queries(self) -> int:
        """Queries' images that wait."""
        return len(self._queries)

    @property
    def num_documents(self) -> int:
        """Documents' images that wait."""
        return len(self._documents)

    def add(self, job: Job) -> None:
        """Take a job in, behind those of its group."""
        self._kind_of(job).add(job)

    def add_first(self, job: Job) -> None:
        """Take a job in that has had its turn: it is the next of its kind."""
        self._kind_of(job).add_first(job)

    def discard(self, job: Job) -> None:
        """Forget a job, if it is still here."""
        self._kind_of(job).discard(job)

    def take(self, *, takes_documents: bool) -> Job | None:
        """The next job for a process, or ``None``."""
        job = self._queries.take()
        return self._documents.take() if job is None and takes_documents else job

    def take_all(self) -> list[Job]:
        """All of them, in the order in which they would have been taken."""
        jobs: list[Job] = []
        while (job := self.take(takes_documents=True)) is not None:
            jobs.append(job)
        return jobs

    def _kind_of(self, job: Job) -> _Turns:
        return self._queries if job.is_query else self._documents
