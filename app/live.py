"""The last seconds: what the page and ``laneway top`` show, once a second.

Laws: it is told what the metrics are told, and keeps counts of whole seconds, never a request; a reading
looks at complete seconds only, so that a rate does not depend on when in a second it is asked for. What waits
is read from the engine when it is asked for, so it cannot drift. The history is what readings said: once a
second one is taken and kept, whether anybody asks or not, so a chart that begins with it goes on without a
step.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from app.engine import Embeddings, Engine, EngineNotReadyError, EngineStatistics
from app.facts import QUIET_ROUTES
from app.gpus import GpuReading
from batching import Lane, PassReport

WINDOW_S = 10
"""Seconds that rates and latencies are taken over."""
MAX_HISTORY_S = 120
"""Seconds before a reading that it can tell of; the page's charts are as long."""

# Latencies are counted in classes that are 2 % wide, and 20 us where that is more: a quantile is right within
# half of it, and costs the same at any load. An answer that takes a day is in class 923.
_CLASSES_PER_E = 1 / math.log(1.02)
_LINEAR_S = 1e-3
# A lane that is full, and one that was too slow: both say "not now", and the SDKs come back.
_REFUSALS = frozenset({408, 429})
# What watches would show itself as traffic.
_WATCHING_ROUTES = QUIET_ROUTES | {
    "/stats", "/ui", "/ui/{name}", "/docs", "/docs/{name}", "/schema/openapi.json",
}  # fmt: skip


# What is shown ---------------------------------------------------------------------------------------------


class LiveModel(Struct, frozen=True, kw_only=True):
    """The served model, in the few facts that fit into a head line."""

    name: str
    aliases: tuple[str, ...]
    source: str
    dimension: int
    max_tokens: int
    modalities: tuple[str, ...]
    dtype: str
    device: str
    fingerprint: str


class LiveLane(Struct, frozen=True, kw_only=True):
    """One lane: what waits now, and what went through in the last seconds."""

    waiting_items: int = 0
    waiting_tokens: int = 0
    oldest_age_s: float = 0.0
    backlog_s: float = 0.0
    """How long all devices together need for what waits."""
    running_items: int = 0
    requests_per_s: float = 0.0
    """All of them, refused ones included."""
    refused_per_s: float = 0.0
    """Of these, answered with 429, as the lane was full, or with 408, as the deadline passed."""
    items_per_s: float = 0.0
    """Inputs that were given their vectors."""
    tokens_per_s: float = 0.0
    p50_ms: float | None = None
    """Of whole answers, from a request's head to the last byte; ``None``: there were none."""
    p99_ms: float | None = None


class LiveLanes(Struct, frozen=True, kw_only=True):
    """The lanes by name."""

    query: LiveLane
    document: LiveLane
    batch: LiveLane


class LiveDevice(Struct, frozen=True, kw_only=True):
    """All workers together."""

    busy_ratio: float
    """Part of the workers' time that was spent on passes that have ended."""
    num_workers: int
    num_ready_workers: int
    passes_per_s: float
    tokens_per_pass: float
    interruptions_per_s: float
    """Passes that were allowed to break into another."""


class LiveHttp(Struct, frozen=True, kw_only=True):
    """Requests of all kinds but those that watch: of this view, of metrics, of health, and of pages."""

    requests_per_s: float
    client_errors_per_s: float
    """Of these, answered 4xx, refusals included; and 499, which is a client that left before its answer."""
    server_errors_per_s: float
    """Of these, answered 5xx."""
    in_flight: int
    """Embedding requests between their decoded body and their answer."""


class LiveGpu(Struct, frozen=True, kw_only=True):
    """One GPU; what its driver does not tell is ``None``."""

    index: int
    name: str
    utilization_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None


Series = tuple[float | None, ...]
"""One number a second, oldest first; ``None``: there was none, or nobody could look in that second."""


class LiveLaneHistory(Struct, frozen=True, kw_only=True):
    """One lane's numbers, as readings told them."""

    waiting_items: Series
    backlog_s: Series
    requests_per_s: Series
    refused_per_s: Series
    items_per_s: Series
    tokens_per_s: Series
    p50_ms: Series
    p99_ms: Series


class LiveLanesHistory(Struct, frozen=True, kw_only=True):
    """The lanes by name."""

    query: LiveLaneHistory
    document: LiveLaneHistory
    batch: LiveLaneHistory


class LiveDeviceHistory(Struct, frozen=True, kw_only=True):
    """The numbers of all workers together."""

    busy_ratio: Series
    passes_per_s: Series
    tokens_per_pass: Series
    interruptions_per_s: Series


class LiveHttpHistory(Struct, frozen=True, kw_only=True):
    """The numbers of requests of all kinds but those that watch."""

    requests_per_s: Series
    client_errors_per_s: Series
    server_errors_per_s: Series


class LiveHistory(Struct, frozen=True, kw_only=True):
    """What readings told in each second before this one; the last of them is one second old.

    All series are equally long: as long as was asked for, or as the server lived.
    """

    lanes: LiveLanesHistory
    device: LiveDeviceHistory
    http: LiveHttpHistory


class LiveSnapshot(Struct, frozen=True, kw_only=True):
    """The answer of ``GET /live``."""

    time_s: float
    """Unix time of the reading."""
    uptime_s: float
    version: str
    state: str
    """``ready``, or the stage that the model is in."""
    window_s: int
    """Complete seconds that rates and latencies are taken over."""
    model: LiveModel | None
    """``None``: it is not loaded."""
    lanes: LiveLanes
    device: LiveDevice
    http: LiveHttp
    gpus: tuple[LiveGpu, ...]
    history: LiveHistory | UnsetType = UNSET
    """Only where it was asked for."""


H = TypeVar("H", bound=Struct)


# What is kept ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _LaneSecond:
    num_requests: int = 0
    num_refused: int = 0
    num_items: int = 0
    num_tokens: int = 0
    answers: dict[int, int] = field(default_factory=dict[int, int])
    """Answers by class of latency."""


@dataclass(slots=True)
class _Second:
    """What happened in one second of the clock."""

    number: int
    num_requests: int = 0
    num_client_errors: int = 0
    num_server_errors: int = 0
    num_passes: int = 0
    num_pass_tokens: int = 0
    num_interruptions: int = 0
    device_s: float = 0.0
    lanes: dict[Lane, _LaneSecond] = field(default_factory=lambda: {lane: _LaneSecond() for lane in Lane})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """What can be told in one second of the clock: what the complete seconds before it come to."""

    number: int
    over_s: int
    """Seconds that were counted."""
    num_requests: int
    num_client_errors: int
    num_server_errors: int
    num_passes: int
    num_pass_tokens: int
    num_interruptions: int
    device_s: float
    lanes: dict[Lane, LiveLane]

    def device(self, *, num_workers: int, num_ready_workers: int) -> LiveDevice:
        """The workers' numbers; how many there are is known only to who reads their memory as well."""
        whole_s = self.over_s * num_workers
        return LiveDevice(
            # Passes end in one second and are told in the next: a full device may seem more than full.
            busy_ratio=min(1.0, self.device_s / whole_s) if whole_s else 0.0,
            num_workers=num_workers,
            num_ready_workers=num_ready_workers,
            passes_per_s=self.num_passes / self.over_s,
            tokens_per_pass=self.num_pass_tokens / self.num_passes if self.num_passes else 0.0,
            interruptions_per_s=self.num_interruptions / self.over_s,
        )

    def http(self, *, in_flight: int) -> LiveHttp:
        """The requests' numbers."""
        return LiveHttp(
            requests_per_s=self.num_requests / self.over_s,
            client_errors_per_s=self.num_client_errors / self.over_s,
            server_errors_per_s=self.num_server_errors / self.over_s,
            in_flight=in_flight,
        )


class _Ring:
    """The last seconds, each in the place of the one that is too old to be asked for."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._seconds = [_Second(-1) for _ in range(window_s + 1)]

    def at(self, number: int) -> _Second:
        """The second of that number, begun if it is new."""
        place = number % len(self._seconds)
        second = self._seconds[place]
        if second.number != number:
            second = self._seconds[place] = _Second(number)
        return second

    def before(self, number: int) -> Iterator[_Second]:
        """The complete seconds of the window that ends before that one; those without events are left out."""
        for second in self._seconds:
            if number - self._window_s <= second.number < number:
                yield second


class LiveView:
    """Owns the last seconds. The event loop tells it everything, and asks it."""

    def __init__(
        self,
        *,
        version: str = "unknown",
        read_gpus: Callable[[], Sequence[LiveGpu]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin to count.

        Args:
            version: Of the program.
            read_gpus: The GPUs as they were last read; it must not wait for them.
            clock: Monotonic seconds.
            unix_clock: Seconds since 1970.
        """
        self._version = version
        self._read_gpus = read_gpus
        self._clock = clock
        self._unix_clock = unix_clock
        self._started_s = clock()
        self._ring = _Ring(WINDOW_S)
        # One more: the second that has begun may be remembered, and is no past yet.
        self._past: deque[_Moment] = deque(maxlen=MAX_HISTORY_S + 1)
        self._engine: Engine | None = None
        self._aliases: tuple[str, ...] = ()
        self._num_in_flight: Callable[[], int] = int

    def __repr__(self) -> str:
        """How much it saw lately."""
        seconds = list(self._ring.before(int(self._clock())))
        return f"<LiveView: {sum(second.num_requests for second in seconds)} requests in {WINDOW_S} s>"

    def watch(self, engine: Engine, *, aliases: Sequence[str], num_in_flight: Callable[[], int]) -> None:
        """Read this engine's state and queues in every snapshot.

        Args:
            engine: It need not have been started.
            aliases: The other names that its model answers to.
            num_in_flight: Embedding requests that are being worked on.
        """
        self._engine = engine
        self._aliases = tuple(aliases)
        self._num_in_flight = num_in_flight

    def observe_http(
        self,
        route: str,
        method: str,
        status: int,
        duration_s: float,
        *,
        failure: str | None,
        lane: Lane | None,
    ) -> None:
        """Count one request, and how long its answer took, if it was an answer and of a lane."""
        if route in _WATCHING_ROUTES:
            return
        second = self._ring.at(int(self._clock()))
        second.num_requests += 1
        # Apart: whoever scans ports, or misspells a field, is no cause for alarm.
        second.num_client_errors += 400 <= status < 500
        second.num_server_errors += status >= 500
        if lane is None:
            return
        of_lane = second.lanes[lane]
        of_lane.num_requests += 1
        of_lane.num_refused += status in _REFUSALS
        if status < 400:
            # Only answers: a lane that refuses would look fast.
            latency = _latency_class(duration_s)
            of_lane.answers[latency] = of_lane.answers.get(latency, 0) + 1

    def observe_embeddings(self, embeddings: Embeddings, *, lane: Lane) -> None:
        """Count what one request was given."""
        of_lane = self._ring.at(int(self._clock())).lanes[lane]
        of_lane.num_items += len(embeddings.num_tokens)
        of_lane.num_tokens += sum(embeddings.num_tokens)

    def observe_pass(self, report: PassReport) -> None:
        """Count one pass that brought rows, in the second it ended; its device time in those it ran in."""
        if report.error is not None:
            return
        now_s = self._clock()
        second = self._ring.at(int(now_s))
        second.num_passes += 1
        second.num_pass_tokens += sum(report.num_tokens.values())
        second.num_interruptions += report.breaks_in
        self._spread(report.device_s, until_s=now_s)

    def _spread(self, device_s: float, *, until_s: float) -> None:
        # A pass of many seconds, as large images take on a CPU, would look like an idle device and then like
        # one that does the impossible.
        begun_s = max(until_s - min(device_s, WINDOW_S), 0.0)
        while until_s > begun_s:
            # The second that ends here; a moment on the border belongs to the one before it.
            number = math.ceil(until_s) - 1
            from_s = max(begun_s, number)
            self._ring.at(number).device_s += until_s - from_s
            until_s = from_s

    @asynccontextmanager
    async def remembering(self) -> AsyncGenerator[None]:
        """Remember every second, until the block ends."""
        loop = asyncio.get_running_loop()

        def ring() -> None:
            nonlocal timer
            self.remember()
            timer = loop.call_later(until_middle_s(self._clock()), ring)

        timer = loop.call_later(until_middle_s(self._clock()), ring)
        try:
            yield
        finally:
            timer.cancel()

    def remember(self) -> None:
        """Keep what a reading tells in this second, for those that ask later. More than once changes nothing.

        Measured on one core: 17 us where nothing happened, and 1 ms after ten seconds of 6,000 answers each.
        """
        number = int(self._clock())
        if self._past and self._past[-1].number == number:
            return
        moment = self._moment(number)
        self._past.append(replace(moment, lanes={lane: self._loaded(lane, moment) for lane in Lane}))

    def _loaded(self, lane: Lane, moment: _Moment) -> LiveLane:
        # Not from the statistics of a reading, which look at all that waits and at the workers' memory.
        try:
            load = None if self._engine is None else self._engine.lane_load(lane)
        except EngineNotReadyError:
            load = None
        if load is None:
            return moment.lanes[lane]
        return msgspec.structs.replace(
            moment.lanes[lane],
            waiting_items=load.num_waiting,
            waiting_tokens=load.num_waiting_tokens,
            backlog_s=load.waiting_s,
        )

    def snapshot(self, *, history_s: int = 0) -> LiveSnapshot:
        """The reading of this moment; half a millisecond with two workers, nearly all of it their memory.

        Args:
            history_s: Seconds before it to tell of as well: another quarter of a millisecond for 120 of
                them. 0: tell of none.
        """
        now_s = self._clock()
        moment = self._moment(int(now_s))
        statistics = self._statistics()
        workers = () if statistics is None else statistics.workers
        return LiveSnapshot(
            time_s=self._unix_clock(),
            uptime_s=now_s - self._started_s,
            version=self._version,
            state="starting" if self._engine is None else self._engine.state.stage,
            window_s=WINDOW_S,
            model=self._model(),
            lanes=LiveLanes(
                query=_read_lane(Lane.QUERY, moment, statistics),
                document=_read_lane(Lane.DOCUMENT, moment, statistics),
                batch=_read_lane(Lane.BATCH, moment, statistics),
            ),
            device=moment.device(
                num_workers=len(workers), num_ready_workers=sum(worker.is_ready for worker in workers)
            ),
            http=moment.http(in_flight=self._num_in_flight()),
            gpus=tuple(self._read_gpus()),
            history=self._history(moment.number, history_s, num_workers=len(workers)) if history_s else UNSET,
        )

    def _moment(self, number: int) -> _Moment:
        seconds = list(self._ring.before(number))
        # A server that began four seconds ago has no rate over ten.
        over_s = min(WINDOW_S, max(1, number - int(self._started_s)))
        return _Moment(
            number=number,
            over_s=over_s,
            num_requests=sum(second.num_requests for second in seconds),
            num_client_errors=sum(second.num_client_errors for second in seconds),
            num_server_errors=sum(second.num_server_errors for second in seconds),
            num_passes=sum(second.num_passes for second in seconds),
            num_pass_tokens=sum(second.num_pass_tokens for second in seconds),
            num_interruptions=sum(second.num_interruptions for second in seconds),
            device_s=sum(second.device_s for second in seconds),
            lanes={lane: _rates_of([second.lanes[lane] for second in seconds], over_s) for lane in Lane},
        )

    def _history(self, number: int, history_s: int, *, num_workers: int) -> LiveHistory:
        known = {moment.number: moment for moment in self._past}
        first = max(number - history_s, int(self._started_s))
        moments = [known.get(one) for one in range(first, number)]
        # How many workers there are does not change while a server lives; before that none made a pass.
        devices = [one and one.device(num_workers=num_workers, num_ready_workers=0) for one in moments]
        https = [one and one.http(in_flight=0) for one in moments]
        query, document, batch = (
            _columns(LiveLaneHistory, [one and one.lanes[lane] for one in moments])
            for lane in (Lane.QUERY, Lane.DOCUMENT, Lane.BATCH)
        )
        return LiveHistory(
            lanes=LiveLanesHistory(query=query, document=document, batch=batch),
            device=_columns(LiveDeviceHistory, devices),
            http=_columns(LiveHttpHistory, https),
        )

    def _statistics(self) -> EngineStatistics | None:
        try:
            return None if self._engine is None else self._engine.statistics()
        except EngineNotReadyError:
            return None

    def _model(self) -> LiveModel | None:
        if self._engine is None:
            return None
        try:
            info = self._engine.info
        except EngineNotReadyError:
            return None
        return LiveModel(
            name=self._engine.served_name,
            aliases=self._aliases,
            source=info.source,
            dimension=info.dimension,
            max_tokens=info.max_tokens,
            modalities=info.modalities,
            dtype=info.dtype,
            device=info.device,
            fingerprint=info.fingerprint,
        )


def live_gpus(readings: Iterable[GpuReading]) -> list[LiveGpu]:
    """What the driver told of each GPU, as it is shown."""
    return [
        LiveGpu(
            index=gpu.index,
            name=gpu.name,
            utilization_ratio=gpu.utilization_ratio,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_total_bytes=gpu.memory_total_bytes,
            power_watts=gpu.power_watts,
            temperature_celsius=gpu.temperature_celsius,
        )
        for gpu in readings
    ]


def until_middle_s(now_s: float) -> float:
    """How long it is to the middle of a second: a timer half a second late still rings in it."""
    return 1 - (now_s - 0.5) % 1


def _rates_of(parts: Sequence[_LaneSecond], over_s: int) -> LiveLane:
    """What went through a lane in these seconds; nothing of what waits."""
    answers: dict[int, int] = {}
    for part in parts:
        for latency, count in part.answers.items():
            answers[latency] = answers.get(latency, 0) + count
    return LiveLane(
        requests_per_s=sum(part.num_requests for part in parts) / over_s,
        refused_per_s=sum(part.num_refused for part in parts) / over_s,
        items_per_s=sum(part.num_items for part in parts) / over_s,
        tokens_per_s=sum(part.num_tokens for part in parts) / over_s,
        p50_ms=_quantile_ms(answers, 0.5),
        p99_ms=_quantile_ms(answers, 0.99),
    )


def _read_lane(lane: Lane, moment: _Moment, statistics: EngineStatistics | None) -> LiveLane:
    if statistics is None:
        return moment.lanes[lane]
    state = statistics.scheduler.lanes[lane]
    return msgspec.structs.replace(
        moment.lanes[lane],
        waiting_items=state.num_waiting,
        waiting_tokens=state.num_waiting_tokens,
        oldest_age_s=state.oldest_wait_s,
        backlog_s=state.waiting_s,
        running_items=state.num_running,
    )


def _columns(history: type[H], rows: Sequence[Struct | None]) -> H:
    """The numbers of rows by their names, those that a history has; of ``None`` there are none."""
    names = history.__struct_fields__
    return history(**{name: tuple(row and getattr(row, name) for row in rows) for name in names})


def _latency_class(latency_s: float) -> int:
    return round(math.log1p(latency_s / _LINEAR_S) * _CLASSES_PER_E)


def _quantile_ms(answers: dict[int, int], quantile: float) -> float | None:
    """The latency that so many answers were not slower than; ``None`` where there was no answer."""
    # The nearest rank: the 99th of 100, the slowest of two.
    rank = math.ceil(quantile * sum(answers.values()))
    for latency in sorted(answers):
        rank -= answers[latency]
        if rank <= 0:
            return math.expm1(latency / _CLASSES_PER_E) * _LINEAR_S * 1000
    return None
