"""What can go wrong in the batching room.

BatchingError
├── QueueFullError           the lane holds as much as it may; comes with a wait
├── SubmissionTooLargeError  the submission alone is more than the lane may hold; waiting is no use
├── DeadlineError            the deadline passed before there was a result
│   └── DeadlineUnmeetableError   ... or would pass, by all that is known, so nothing was begun
├── EntryFailedError         one entry of a submission failed, by its own fault or by exhausted retries
├── ShuttingDownError        the batcher is closing
├── NoRunnersError           every runner is gone for good
├── RunnerLostError          raised *by a runner*: it died under a pass, which may be tried again
└── RunnerMemoryError        raised *by a runner*: it had no memory for a pass; a smaller one may fit
"""

from batching.types import Lane


class BatchingError(Exception):
    """Base of everything this room raises."""


class QueueFullError(BatchingError):
    """The lane cannot take the submission: it would hold more than it is allowed to."""

    def __init__(
        self,
        lane: Lane,
        *,
        what: str,
        num_waiting: float,
        limit: float,
        num_new: float,
        retry_after_s: float,
        num_kept: float = 0,
        is_at_least: bool = False,
    ) -> None:
        """Say what there is too much of.

        Args:
            lane: The lane.
            what: ``"entries"``, or ``"seconds of work"``.
            num_waiting: How much of it waits.
            limit: How much of it may wait.
            num_new: How much of it the request would add.
            retry_after_s: When there will be room.
            num_kept: How much of it is kept for requests that were told to come back.
            is_at_least: Nobody knows yet how much the request would add; no less than that.
        """
        kept = f"{num_kept:.9g} are kept for requests that come back, " if num_kept else ""
        super().__init__(
            f"the {lane} lane is full: {num_waiting:.9g} {what} are waiting, {kept}{limit:.9g} are allowed, "
            f"and the request brings {'at least ' if is_at_least else ''}{num_new:.9g}"
        )
        self.lane = lane
        self.what = what
        self.num_waiting = num_waiting
        self.limit = limit
        self.num_new = num_new
        self.retry_after_s = retry_after_s
        self.num_kept = num_kept
        self.is_at_least = is_at_least


class SubmissionTooLargeError(BatchingError):
    """The submission alone is more than the lane may ever hold; waiting would not help."""

    def __init__(self, lane: Lane, *, what: str, limit: int, num_new: int) -> None:
        super().__init__(f"the request brings {num_new} {what}; the {lane} lane holds at most {limit}")
        self.lane = lane
        self.what = what
        self.limit = limit
        self.num_new = num_new


class DeadlineError(BatchingError):
    """The deadline passed before there was a result."""

    def __init__(self, *, waited_s: float) -> None:
        super().__init__(f"the deadline passed: there was no result after {waited_s * 1000:.0f} ms")
        self.waited_s = waited_s


class DeadlineUnmeetableError(DeadlineError):
    """The deadline is earlier than the result can be there; the request was not let in."""

    def __init__(self, *, timeout_s: float, predicted_s: float) -> None:
        BatchingError.__init__(
            self,
            f"the deadline is in {timeout_s * 1000:.0f} ms, "
            f"and the result is expected in {predicted_s * 1000:.0f} ms",
        )
        self.waited_s = 0.0
        self.timeout_s = timeout_s
        self.predicted_s = predicted_s


class EntryFailedError(BatchingError):
    """One entry of a submission failed; ``__cause__`` says why."""

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(f"entry {index} failed: {type(cause).__name__}")
        self.index = index
        self.__cause__ = cause


class ShuttingDownError(BatchingError):
    """The batcher is closing and takes nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class NoRunnersError(BatchingError):
    """Every runner has ended for good; nothing can run any more. ``__cause__`` is the end of the last one."""

    def __init__(self, num_runners: int) -> None:
        super().__init__(f"none of the {num_runners} runners is left")
        self.num_runners = num_runners


class RunnerLostError(BatchingError):
    """The runner died under the pass. The work itself may be innocent: it is tried again."""

    def __init__(self, message: str, *, has_begun: bool = True) -> None:
        """Say what became of the runner.

        Args:
            message: For people.
            has_begun: It had begun the pass, or may have. False clears the pass of all blame.
        """
        super().__init__(message)
        self.has_begun = has_begun


class RunnerMemoryError(BatchingError):
    """The runner had no memory for the pass. It is tried again in halves, and later passes are smaller."""
