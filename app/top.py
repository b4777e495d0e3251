"""``laneway top``: the last seconds of a running server, drawn in a terminal.

What is drawn follows from the readings alone: ``render`` is a plain function of them and of the terminal's
width. What happened while nobody asked is asked for with the next reading, so charts are full from the first
one on. Law: the terminal is left as it was found, however the program ends.
"""

import asyncio
import http.client
import math
import os
import signal
import sys
import termios
import tty
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.live import LiveGpu, LiveLane, LiveSnapshot
from app.threads import in_daemon_thread

OK = 0
FAILED = 1

TIMEOUT_S = 3.0
MINUTE_S = 60
PLAIN_WIDTH = 140
"""Characters of a line where there is no terminal to fit it into."""
# A question a second, which may be a little late. Between readings that are further apart there were others.
_MAX_APART_S = 1.5
_MAX_BODY_BYTES = 2**20
_SPARKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 20
_BAR_WIDTH = 10
_GIB = 2**30
_QUIT_KEYS = b"qQ"
_NOTHING = "-"
_PATHS = ("/v1", "/ui", "/live")


# Asking ----------------------------------------------------------------------------------------------------


class NoReadingError(Exception):
    """The server gave no reading. The message is one line that says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the readings come from."""

    url: str
    """``http://127.0.0.1:8000``, with or without its scheme; the clients' base URL or the page's will do."""
    api_key: str | None = None

    @property
    def root(self) -> str:
        """The URL without the path of what it was copied from: the API, the page, or the readings."""
        url = self.url if "://" in self.url else f"http://{self.url}"
        url = url.partition("#")[0].partition("?")[0].rstrip("/")
        # But for a host of that name, as in http://live.
        path = next((path for path in _PATHS if url.endswith(path) and not url.endswith("/" + path)), "")
        return url.removesuffix(path).rstrip("/")

    def read(self, *, history_s: int = 0) -> LiveSnapshot:
        """Ask for one reading; blocks for as long as a slow server takes, within reason.

        Args:
            history_s: Seconds before it to be told of as well. A server of an older version tells of none.

        Raises:
            NoReadingError: There is none to be had.
        """
        status, body = self._get(f"/live?history_s={history_s}" if history_s else "/live")
        if status in (401, 403):
            raise NoReadingError(f"{self.root} wants a key; give one with --api-key")
        if status != 200:
            raise NoReadingError(f"{self.root}/live answers with status {status}; is this a Laneway?")
        try:
            return msgspec.json.decode(body, type=LiveSnapshot)
        except msgspec.DecodeError as error:
            raise NoReadingError(
                f"{self.root}/live is not what this version reads ({error}); is it another version's?"
            ) from error

    def _get(self, path: str) -> tuple[int, bytes]:
        try:
            parts = urlsplit(self.root)
            connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            if parts.scheme not in ("http", "https") or parts.hostname is None:
                raise ValueError("it begins with neither http:// nor https://")
            connection = connect(parts.hostname, parts.port, timeout=TIMEOUT_S)
        except ValueError as error:
            raise NoReadingError(f'"{self.url}" is no address of a server: {error}') from error
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise NoReadingError(
                "the key cannot be sent: a character of it is no printable ASCII, such as a line's end"
            )
        headers = {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}
        try:
            connection.request("GET", parts.path + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(_MAX_BODY_BYTES)
        except UnicodeError as error:
            # The host's name, in the form that is looked up: http://a..b
            raise NoReadingError(f'"{self.url}" is no address of a server: {error}') from error
        except (OSError, http.client.HTTPException) as error:
            # A system's message without its number.
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise NoReadingError(f"cannot reach {self.root}: {reason}") from error
        finally:
            connection.close()


# Keeping ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What charts show of one second."""

    time_s: float
    """Unix time."""
    requests_per_s: tuple[float, ...]
    """Of each lane, in the order in which they are served."""
    busy_ratio: float


@dataclass(slots=True, kw_only=True)
class View:
    """The latest reading, what charts show of the last minute, and what is wrong now."""

    url: str
    reading: LiveSnapshot | None = None
    """``None``: there was none yet."""
    points: deque[Point] = field(default_factory=deque[Point])
    """Oldest first, one a second at most."""
    problem: str | None = None
    """Why there is no new reading; ``None``: there is one."""

    def add(self, reading: LiveSnapshot) -> None:
        """Take a reading and its history, and forget what is older than a minute by the server's clock.

        Where that clock was set back, nothing from before can be placed in time: all of it is forgotten.
        """
        self.problem = None
        self.reading = reading
        if self.points and reading.time_s < self.points[-1].time_s:
            self.points.clear()
        for point in (*history_of(reading), point_of(reading)):
            if self.points and int(point.time_s) == int(self.points[-1].time_s):
                # Of more than one in a second the last, or a short interval would fill a chart with itself.
                self.points.pop()
            if not self.points or point.time_s > self.points[-1].time_s:
                self.points.append(point)
        while reading.time_s - self.points[0].time_s > MINUTE_S:
            self.points.popleft()


def point_of(reading: LiveSnapshot) -> Point:
    """What charts show of a reading."""
    return Point(
        time_s=reading.time_s,
        requests_per_s=tuple(lane.requests_per_s for _, lane in lanes_of(reading)),
        busy_ratio=reading.device.busy_ratio,
    )


def history_of(reading: LiveSnapshot) -> Iterator[Point]:
    """What charts show of the seconds before a reading, oldest first; of some the server may know nothing."""
    history = reading.history
    if history is UNSET:
        return
    lanes = history.lanes
    rates = zip(*(lane.requests_per_s for lane in (lanes.query, lanes.document, lanes.batch)), strict=True)
    busy_ratios = history.device.busy_ratio
    for index, (requests_per_s, busy_ratio) in enumerate(zip(rates, busy_ratios, strict=True)):
        known = tuple(one for one in requests_per_s if one is not None)
        if busy_ratio is not None and len(known) == len(requests_per_s):
            yield Point(
                time_s=reading.time_s - (len(busy_ratios) - index),
                requests_per_s=known,
                busy_ratio=busy_ratio,
            )


def history_due_s(asked_s: float, last_s: float | None) -> int:
    """Seconds of history to ask for with the next reading.

    Args:
        asked_s: When that is, by any clock.
        last_s: When the last one came, by the same clock; ``None``: none came yet.
    """
    if last_s is None:
        return MINUTE_S
    apart_s = asked_s - last_s
    return 0 if apart_s <= _MAX_APART_S else min(math.ceil(apart_s), MINUTE_S)


def lanes_of(reading: LiveSnapshot) -> tuple[tuple[str, LiveLane], ...]:
    """The lanes by name, in the order in which they are served."""
    lanes = reading.lanes
    return ("query", lanes.query), ("document", lanes.document), ("batch", lanes.batch)


# Drawing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneColumn:
    """A column of the lanes' table."""

    title: str
    width: int
    rank: int
    """In a narrow terminal the columns of the highest ranks are left out first."""
    write: Callable[[LiveLane], str]


LANE_COLUMNS = (
    LaneColumn(title="waiting", width=8, rank=1, write=lambda lane: count(lane.waiting_items)),
    LaneColumn(title="tokens", width=8, rank=8, write=lambda lane: count(lane.waiting_tokens)),
    LaneColumn(title="oldest s", width=8, rank=6, write=lambda lane: seconds(lane.oldest_age_s)),
    LaneColumn(title="backlog s", width=9, rank=2, write=lambda lane: seconds(lane.backlog_s)),
    LaneColumn(title="running", width=7, rank=7, write=lambda lane: count(lane.running_items)),
    LaneColumn(title="req/s", width=7, rank=3, write=lambda lane: rate(lane.requests_per_s)),
    LaneColumn(title="refused/s", width=9, rank=1, write=lambda lane: refusals(lane.refused_per_s)),
    LaneColumn(title="items/s", width=7, rank=4, write=lambda lane: rate(lane.items_per_s)),
    LaneColumn(title="tok/s", width=8, rank=5, write=lambda lane: rate(lane.tokens_per_s)),
    LaneColumn(title="p50 ms", width=8, rank=1, write=lambda lane: milliseconds(lane.p50_ms)),
    LaneColumn(title="p99 ms", width=8, rank=1, write=lambda lane: milliseconds(lane.p99_ms)),
)
_NAME_WIDTH = 8
_GAP = 2


def render(view: View, *, width: int, hint: str = "") -> RenderableType:
    """Draw a view.

    Args:
        view: What to draw.
        width: Characters of a line.
        hint: A last line, such as which key ends it.
    """
    parts: list[RenderableType] = []
    if (reading := view.reading) is not None:
        parts += [
            _line(*_head(reading), view.url),
            Text(),
            _lane_table(view, reading, width=width),
            Text(),
            _line(*_device(view, reading)),
            _line(*_http(reading)),
            *(_line(*_gpu(gpu)) for gpu in reading.gpus),
        ]
    elif view.problem is None:
        parts.append(Text(f"asking {view.url}"))
    if view.problem is not None:
        since = "" if view.reading is None else "; the numbers are old"
        parts += [Text(), Text(f"{view.problem}{since}", style="bold red")]
    if hint:
        parts += [Text(), Text(hint, style="dim")]
    return Group(*parts)


def _line(*words: str | Text) -> Text:
    line = Text("  ").join(word if isinstance(word, Text) else Text(word) for word in words if word)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _head(reading: LiveSnapshot) -> list[str | Text]:
    state = Text(reading.state, style="green" if reading.state == "ready" else "bold yellow")
    words: list[str | Text] = [Text(f"Laneway {reading.version}", style="bold"), state]
    if (model := reading.model) is not None:
        words += [
            Text(model.name, style="bold"),
            f"{model.dimension} dimensions",
            f"{model.max_tokens:,} tokens",
            "+".join(model.modalities),
            f"{model.dtype} on {model.device}",
        ]
    return [*words, f"up {duration(reading.uptime_s)}"]


def _lane_table(view: View, reading: LiveSnapshot, *, width: int) -> Table:
    columns = fitting(LANE_COLUMNS, width - _NAME_WIDTH)
    used = _NAME_WIDTH + sum(column.width + _GAP for column in columns)
    spark_width = min(_SPARK_WIDTH, width - used - _GAP)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("lane", width=_NAME_WIDTH)
    for column in columns:
        table.add_column(column.title, width=column.width, justify="right", no_wrap=True)
    has_sparks = spark_width >= len("req/s, 1 min")
    if has_sparks:
        table.add_column("req/s, 1 min", width=spark_width, no_wrap=True)
    for index, (name, lane) in enumerate(lanes_of(reading)):
        rates = [point.requests_per_s[index] for point in view.points]
        sparks = [Text(sparkline(rates, width=spark_width), style="cyan")]
        style = "bold red" if lane.refused_per_s else ""
        cells = [Text(column.write(lane), style=style) for column in columns]
        table.add_row(Text(name, style=style), *cells, *(sparks if has_sparks else ()))
    return table


def fitting(columns: Sequence[LaneColumn], width: int) -> list[LaneColumn]:
    """The columns that find room side by side, the most important ones at least to be had."""
    kept = list(columns)
    while kept and sum(column.width + _GAP for column in kept) > width:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def _device(view: View, reading: LiveSnapshot) -> list[str | Text]:
    device = reading.device
    workers = f"{device.num_ready_workers} of {device.num_workers} workers"
    busy_ratios = [point.busy_ratio for point in view.points]
    is_whole = device.num_ready_workers == device.num_workers
    return [
        _name("device"),
        _share(device.busy_ratio),
        Text(sparkline(busy_ratios, width=_SPARK_WIDTH, top=1.0), style="cyan"),
        Text(workers, style="" if is_whole else "bold red"),
        f"{rate(device.passes_per_s)} passes/s",
        f"{count(round(device.tokens_per_pass))} tokens a pass",
        f"{rate(device.interruptions_per_s)} interruptions/s",
    ]


def _http(reading: LiveSnapshot) -> list[str | Text]:
    http_ = reading.http
    return [
        _name("http"),
        f"{rate(http_.requests_per_s)} req/s",
        # Red where the server is at fault; refusals among the clients' are red in their lane.
        f"{rate(http_.client_errors_per_s)} 4xx/s",
        Text(
            f"{rate(http_.server_errors_per_s)} 5xx/s", style="bold red" if http_.server_errors_per_s else ""
        ),
        f"{count(http_.in_flight)} in flight",
        Text(f"over the last {reading.window_s} s", style="dim"),
    ]


def _gpu(gpu: LiveGpu) -> list[str | Text]:
    words: list[str | Text] = [_name(f"gpu {gpu.index}"), gpu.name]
    if gpu.utilization_ratio is not None:
        words.append(_share(gpu.utilization_ratio))
    if gpu.memory_used_bytes is not None and gpu.memory_total_bytes is not None:
        words.append(f"{gpu.memory_used_bytes / _GIB:.1f} of {gpu.memory_total_bytes / _GIB:.1f} GiB")
    if gpu.power_watts is not None:
        words.append(f"{gpu.power_watts:.0f} W")
    if gpu.temperature_celsius is not None:
        words.append(f"{gpu.temperature_celsius:.0f} °C")
    return words


def _name(text: str) -> Text:
    return Text(f"{text:<{_NAME_WIDTH}}")


def _share(ratio: float) -> Text:
    """A bar and the number that it shows."""
    filled = round(min(max(ratio, 0.0), 1.0) * _BAR_WIDTH)
    return Text.assemble(
        ("█" * filled, "green"), ("░" * (_BAR_WIDTH - filled), "dim"), f" {ratio * 100:3.0f} %"
    )


def sparkline(values: Sequence[float], *, width: int, top: float | None = None) -> str:
    """The values as a row of bars, the latest at the right end.

    Args:
        values: Oldest first; more than fit are taken together, and the highest is drawn.
        width: Most characters it may have.
        top: What a full bar stands for. ``None``: the highest of the values.
    """
    if not values or width < 1:
        return ""
    num_bars = min(width, len(values))
    bounds = [index * len(values) // num_bars for index in range(num_bars + 1)]
    bars = [max(values[start:end]) for start, end in pairwise(bounds)]
    highest = top or max(bars) or 1.0
    return "".join(_SPARKS[min(int(bar / highest * len(_SPARKS)), len(_SPARKS) - 1)] for bar in bars)


def count(number: int) -> str:
    """A number in at most seven characters: ``9,999``, ``12.3k``, ``4.56M``."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.1f}k" if number < 999_950 else f"{number / 1e6:.2f}M"


def rate(per_s: float) -> str:
    """A rate as far as it is worth reading: one decimal below 100."""
    return f"{per_s:.1f}" if per_s < 99.95 else count(round(per_s))


def refusals(per_s: float) -> str:
    """A rate that is a dash as long as all is well, and however small it is, never a zero beside it."""
    return _NOTHING if per_s == 0 else rate(max(per_s, 0.1))


def seconds(time_s: float) -> str:
    """Seconds with what decimals they are worth; nothing is a dash."""
    return _NOTHING if time_s == 0 else f"{time_s:.2f}" if time_s < 9.995 else f"{time_s:,.1f}"


def milliseconds(time_ms: float | None) -> str:
    """Milliseconds; a dash where there were none."""
    if time_ms is None:
        return _NOTHING
    return f"{time_ms:.1f}" if time_ms < 99.95 else f"{time_ms:,.0f}"


def duration(time_s: float) -> str:
    """A long time in its two largest units: ``3 h 12 min``."""
    minutes, whole_s = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (whole_s, "s")]
    first = next((index for index, (number, _) in enumerate(units) if number), len(units) - 1)
    return " ".join(f"{number} {unit}" for number, unit in units[first : first + 2])


# Watching --------------------------------------------------------------------------------------------------


def top(server: Server, *, interval_s: float, once: bool) -> int:
    """Show the server's readings until told to stop; once where nobody can tell. Returns the exit code."""
    if once or not sys.stdout.isatty():
        return show_once(server)
    return asyncio.run(watch(server, interval_s=interval_s))


def show_once(server: Server) -> int:
    """Print one reading as plain text.

    Returns:
        1 if there is none; a line on standard error says why.
    """
    view = View(url=server.root)
    try:
        view.add(server.read(history_s=MINUTE_S))
    except NoReadingError as error:
        sys.stderr.write(f"laneway: {error}\n")
        return FAILED
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    console.print(render(view, width=console.width))
    return OK


async def watch(server: Server, *, interval_s: float) -> int:
    """Draw readings one after the other, until a key or a signal ends it."""
    loop = asyncio.get_running_loop()
    view, stop = View(url=server.root), asyncio.Event()
    # Before the terminal is touched: a signal that comes right then must not leave it as it is.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    console = Console(highlight=False)
    with (
        keys_of(sys.stdin.fileno()) as keys,
        Live(_Page(view), console=console, screen=True, auto_refresh=False) as live,
    ):
        loop.add_signal_handler(signal.SIGWINCH, live.refresh)
        if keys is not None:
            loop.add_reader(keys, partial(_on_key, keys, stop))
        following = asyncio.create_task(_follow(server, view, live.refresh, interval_s=interval_s))
        stopping = asyncio.create_task(stop.wait())
        done, _ = await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        following.cancel()
        stopping.cancel()
        if keys is not None:
            loop.remove_reader(keys)
    if following in done:
        following.result()  # it ends by a mistake of ours alone
    return OK


class _Page:
    """A view as wide as the terminal is at the moment of drawing."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield render(self._view, width=options.max_width, hint="q quits")


async def _follow(server: Server, view: View, redraw: Callable[[], None], *, interval_s: float) -> None:
    loop = asyncio.get_running_loop()
    last_s: float | None = None
    while True:
        asked_s = loop.time()
        read = partial(server.read, history_s=history_due_s(asked_s, last_s))
        try:
            # Not on the loop: a key must end it while a server keeps us waiting.
            view.add(await in_daemon_thread(read, name="read-live"))
            last_s = asked_s
        except NoReadingError as error:
            view.problem = f"{error}; trying again"
        redraw()
        await asyncio.sleep(max(0.0, asked_s + interval_s - loop.time()))


def _on_key(keys: int, stop: asyncio.Event) -> None:
    typed = os.read(keys, 64)
    if not typed or any(key in _QUIT_KEYS for key in typed):
        stop.set()


@contextmanager
def keys_of(terminal: int) -> Generator[int | None]:
    """Within the block keys arrive at once and are not shown; afterwards the terminal is as it was.

    Args:
        terminal: A file descriptor; of none that is no terminal keys are read, and ``None`` is yielded.
    """
    if not os.isatty(terminal):
        yield None
        return
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield terminal
    finally:
        # What was typed and not read must not be run by the shell.
        with suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
