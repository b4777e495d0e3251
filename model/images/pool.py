"""Decodes images in processes of their own: a hostile file can crash or hang nothing but one of them.

Rule 1: one task owns one process and gives it one image at a time; ``decode`` hands over a job and waits.
Rule 2: every job ends in an image or an error, whatever happens to the process or to the decoder.
Rule 3: a query's image is never behind a document's: one process takes no documents, and the others take
queries first. Requests take turns (jobs.py).
Rule 4: nobody's image is behind one that nobody waits for: a decode whose caller has gone may come to its end
if that is near, and is killed if it is not.

There is a library for such a pool, Pebble 5.2. It polls every 0.1 s from three threads, hands jobs to its
processes through one pipe (first come, first served) under a lock that a killed process may leave held, and
pickles what comes back.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass, field

from model.errors import DecodeFailedError, DecoderUnavailableError, ImageError, ImageTimeoutError
from model.framing import FrameError
from model.images import frames
from model.images.child import Child
from model.images.jobs import Job, WaitingJobs
from model.images.spec import Alpha, DecodedImage, ImageLimits, ImageSpec, Orientation
from model.processes import describe_exit

_MAX_ATTEMPTS = 2
"""A process may die by no fault of the image. If a second one dies over it, it is the image."""
_FIRST_RESTART_DELAY_S = 0.1
_MAX_RESTART_DELAY_S = 10.0
_ABANDONED_GRACE_S = 0.5
"""A decode may go on for so long without a caller. Most end by then; a process takes 0.2 s to replace."""

log = logging.getLogger("laneway.images")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStatistics:
    """What a decoder tells of itself, read at any time."""

    pids: tuple[int, ...]
    """Of the processes that live."""
    num_decoding: int
    """Images that a process works on."""
    num_waiting_queries: int
    num_waiting_documents: int
    num_decoded: int
    num_refused: int
    """Images that could not be embedded, those below not among them."""
    num_timeouts: int
    num_abandoned: int
    """Decodes that were killed because nobody waited for them any more."""
    num_crashes: int
    """Times that a process died over an image."""
    num_restarts: int
    """Processes that took the place of another, for whatever reason."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Seat:
    """A place for one process after the other."""

    takes_documents: bool
    child: Child | None = None
    """``None`` while it is being replaced."""
    is_decoding: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the idle owner must look again: a job came, or the process ended."""


class _ProcessLostError(Exception):
    """The process has ended, or has to be ended. The text follows "the decode process"."""


class ImageDecoder:
    """Owns the decode processes, and the jobs that were handed to it."""

    def __init__(
        self,
        spec: ImageSpec,
        limits: ImageLimits,
        orientation: Orientation = Orientation.EXIF,
        alpha: Alpha = Alpha.WHITE,
        *,
        num_processes: int,
        decodes_per_process: int = 1000,
        start_timeout_s: float = 30.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Describe the decoder; ``start`` starts it.

        Args:
            spec: How the model wants its images.
            limits: What is accepted, and what one image may cost.
            orientation: Whether the EXIF orientation counts.
            alpha: What stands behind transparent pixels.
            num_processes: At least 1. From 2 on, one of them decodes queries' images alone.
            decodes_per_process: A process is replaced after so many, which bounds what libraries may leak.
            start_timeout_s: A process that is not ready by then is killed.
            sleep: How restarts wait.
        """
        assert num_processes >= 1
        self._set_up = frames.SetUp(spec=spec, limits=limits, orientation=orientation, alpha=alpha)
        self._decodes_per_process = decodes_per_process
        self._start_timeout_s = start_timeout_s
        self._sleep = sleep
        self._seats = [
            _Seat(takes_documents=num_processes == 1 or number > 0) for number in range(num_processes)
        ]
        self._keepers: list[asyncio.Task[None]] = []
        self._waiting = WaitingJobs()
        self._is_open = False

        self._num_decoded = 0
        self._num_refused = 0
        self._num_timeouts = 0
        self._num_abandoned = 0
        self._num_crashes = 0
        self._num_restarts = 0

    async def start(self) -> None:
        """Start the processes; returns when all of them can decode.

        Raises:
            DecoderUnavailableError: One cannot be started. Nothing is left running.
        """
        assert not self._keepers, "a decoder is started once"
        starts = [asyncio.create_task(self._start_child()) for _ in self._seats]
        try:
            children = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(outcome, Child):
                    await outcome.end()
            raise
        for seat, child in zip(self._seats, children, strict=True):
            seat.child = child
            keeper = asyncio.create_task(self._keep(seat, child), name="keeper of a decode process")
            keeper.add_done_callback(self._lose_keeper)
            self._keepers.append(keeper)
        self._is_open = True

    async def decode(self, data: bytes, *, is_query: bool, group: Hashable = None) -> DecodedImage:
        """Decode an image file. A caller that goes away takes its place in the queue with it.

        Args:
            data: The whole file.
            is_query: It goes ahead of all documents.
            group: The request that it belongs to: waiting images of several groups are decoded in turn.
                ``None``: a group of its own.

        Raises:
            ImageError: The image cannot be embedded; the message may be shown to whoever sent it.
            DecoderUnavailableError: The decoder is not open, or has no processes any more.
        """
        if not self._is_open:
            raise DecoderUnavailableError("the image decoder is not open")
        answer: asyncio.Future[DecodedImage] = asyncio.get_running_loop().create_future()
        own_group = object() if group is None else group
        job = Job(data=data, is_query=is_query, group=own_group, answer=answer)
        self._waiting.add(job)
        for seat in self._seats:
            seat.wake.set()
        try:
            return await answer
        finally:
            self._waiting.discard(job)

    async def close(self) -> None:
        """End the processes. Jobs that are not answered fail with ``DecoderUnavailableError``."""
        self._is_open = False
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for seat in self._seats:
            if seat.child is not None:  # a keeper that was cancelled before its first step has ended nothing
                await seat.child.end()
                seat.child = None
        self._fail_waiting(_closed())

    def statistics(self) -> DecoderStatistics:
        """A snapshot of the decoder's state."""
        return DecoderStatistics(
            pids=tuple(seat.child.pid for seat in self._seats if seat.child is not None),
            num_decoding=sum(seat.is_decoding for seat in self._seats),
            num_waiting_queries=self._waiting.num_queries,
            num_waiting_documents=self._waiting.num_documents,
            num_decoded=self._num_decoded,
            num_refused=self._num_refused,
            num_timeouts=self._num_timeouts,
            num_abandoned=self._num_abandoned,
            num_crashes=self._num_crashes,
            num_restarts=self._num_restarts,
        )

    def __repr__(self) -> str:
        now = self.statistics()
        return (
            f"<ImageDecoder: {len(now.pids)} of {len(self._seats)} processes, {now.num_decoding} decoding, "
            f"{now.num_waiting_queries} queries and {now.num_waiting_documents} documents waiting>"
        )

    async def _keep(self, seat: _Seat, child: Child) -> None:
        """Keep a process in the seat until cancelled."""
        while True:
            seat.child = child
            loss: _ProcessLostError | None = None
            try:
                await self._serve(seat, child)
            except _ProcessLostError as error:
                loss = error
            finally:
                seat.is_decoding = False
                seat.child = None
                returncode = await child.end()
            if loss is not None:
                log.warning(
                    "the decode process (pid %d) %s and %s; starting another",
                    child.pid,
                    loss,
                    describe_exit(returncode),
                )
            child = await self._restart()

    async def _serve(self, seat: _Seat, child: Child) -> None:
        """Run job after job; returns when the process has had its share, raises when it is lost."""
        for _ in range(self._decodes_per_process):
            job = await self._next_job(seat, child)
            seat.is_decoding = True
            await self._run(job, child)
            seat.is_decoding = False

    async def _next_job(self, seat: _Seat, child: Child) -> Job:
        while True:
            seat.wake.clear()
            if child.is_lost:
                raise _ProcessLostError("was idle")
            job = self._waiting.take(takes_documents=seat.takes_documents)
            if job is None:
                with child.watched(seat.wake.set):
                    await seat.wake.wait()
            elif not job.answer.done():  # else its caller has just gone
                return job

    async def _run(self, job: Job, child: Child) -> None:
        timeout_s = self._set_up.limits.decode_timeout_s
        job.num_attempts += 1
        try:
            async with asyncio.timeout(timeout_s) as limit:
                with _shortened_without_caller(limit, job):
                    image = await child.decode(job.data)
        except ImageError as error:
            self._num_refused += 1
            job.fail(error)
        except TimeoutError:
            if job.answer.cancelled():
                self._num_abandoned += 1
                raise _ProcessLostError(
                    f"was decoding an image of {len(job.data)} bytes that nobody waits for any more"
                ) from None
            self._num_timeouts += 1
            job.fail(ImageTimeoutError(timeout_s=timeout_s))
            raise _ProcessLostError(
                f"had not decoded an image of {len(job.data)} bytes after {timeout_s:g} s"
            ) from None
        except (EOFError, OSError, FrameError) as error:
            self._num_crashes += 1
            self._try_again(job)
            raise _ProcessLostError(
                f"broke off over an image of {len(job.data)} bytes ({type(error).__name__}: {error})"
            ) from error
        except BaseException:
            job.fail(_closed())
            raise
        else:
            self._num_decoded += 1
            job.finish(image)

    def _try_again(self, job: Job) -> None:
        if job.answer.done():
            return  # its caller has gone
        if job.num_attempts < _MAX_ATTEMPTS:
            self._waiting.add_first(job)
        else:
            job.fail(DecodeFailedError(num_attempts=job.num_attempts))

    async def _restart(self) -> Child:
        for num_failures in itertools.count():
            try:
                child = await self._start_child()
            except DecoderUnavailableError as error:
                # Beyond 2**10 the longest delay is reached.
                delay_s = min(_MAX_RESTART_DELAY_S, _FIRST_RESTART_DELAY_S * 2 ** min(num_failures, 10))
                log.error("%s; trying again in %.1f s", error, delay_s)
                if all(seat.child is None for seat in self._seats):
                    self._fail_waiting(error)
                await self._sleep(delay_s)
            else:
                self._num_restarts += 1
                return child
        raise AssertionError("it counts forever")

    async def _start_child(self) -> Child:
        try:
            child = Child(self._set_up)
        except OSError as error:
            raise DecoderUnavailableError(f"cannot start a decode process: {error}") from error
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await child.become_ready()
        except TimeoutError:
            await child.end()
            raise DecoderUnavailableError(
                f"a decode process (pid {child.pid}) was not ready after {self._start_timeout_s:g} s"
            ) from None
        except (EOFError, OSError, FrameError) as error:
            how = describe_exit(await child.end())
            raise DecoderUnavailableError(
                f"a decode process (pid {child.pid}) {how} when it was started"
            ) from error
        except BaseException:
            await child.end()
            raise
        return child

    def _fail_waiting(self, error: DecoderUnavailableError) -> None:
        for job in self._waiting.take_all():
            job.fail(error)

    def _lose_keeper(self, keeper: "asyncio.Task[None]") -> None:
        """Say so if a keeper ends by itself, and leave nobody waiting for ever when it was the last one."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        log.critical("a decode process is gone for good, by a mistake of ours", exc_info=error)
        if all(one.done() for one in self._keepers):
            self._is_open = False
            self._fail_waiting(DecoderUnavailableError("the image decoder has no processes any more"))


@contextmanager
def _shortened_without_caller(limit: asyncio.Timeout, job: Job) -> Generator[None]:
    """Within it, ``limit`` is brought forward when the job's caller goes away."""

    def shorten(_: object) -> None:
        end_s = limit.when()
        if end_s is not None and not limit.expired():
            limit.reschedule(min(end_s, asyncio.get_running_loop().time() + _ABANDONED_GRACE_S))

    job.answer.add_done_callback(shorten)
    try:
        yield
    finally:
        job.answer.remove_done_callback(shorten)


def _closed() -> DecoderUnavailableError:
    return DecoderUnavailableError("the image decoder was closed")
