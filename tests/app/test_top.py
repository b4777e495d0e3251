"""The live view of the terminal: what is drawn, and what it does to the terminal it is drawn in."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from app.cli import run
from app.live import (
    LiveDevice,
    LiveDeviceHistory,
    LiveGpu,
    LiveHistory,
    LiveHttp,
    LiveHttpHistory,
    LiveLane,
    LiveLaneHistory,
    LiveLanes,
    LiveLanesHistory,
    LiveModel,
    LiveSnapshot,
    Series,
)
from app.server import bind_socket
from app.top import (
    LANE_COLUMNS,
    MINUTE_S,
    NoReadingError,
    Server,
    View,
    count,
    duration,
    fitting,
    history_due_s,
    milliseconds,
    rate,
    refusals,
    render,
    seconds,
    sparkline,
)
from tests.app.running import Running, living, running, taken_socket

ROOT = Path(__file__).parents[2]

MODEL = LiveModel(
    name="all-MiniLM-L6-v2",
    aliases=("minilm",),
    source="minilm",
    dimension=384,
    max_tokens=256,
    modalities=("text",),
    dtype="float32",
    device="cpu",
    fingerprint="f" * 64,
)
GPUS = (
    LiveGpu(
        index=0,
        name="NVIDIA H200",
        utilization_ratio=0.8,
        memory_used_bytes=23 * 2**30,
        memory_total_bytes=139 * 2**30,
        power_watts=412.4,
        temperature_celsius=61,
    ),
    LiveGpu(index=1, name="NVIDIA H200 MIG"),
)


def reading(
    *,
    time_s: float = 0.0,
    query_per_s: float = 13.2,
    busy_ratio: float = 0.83,
    num_ready: int = 2,
    state: str = "ready",
    model: LiveModel | None = MODEL,
    gpus: tuple[LiveGpu, ...] = (),
) -> LiveSnapshot:
    return LiveSnapshot(
        time_s=time_s,
        uptime_s=11_535,
        version="1.2.3",
        state=state,
        window_s=10,
        model=model,
        lanes=LiveLanes(
            query=LiveLane(
                waiting_items=3,
                waiting_tokens=27,
                oldest_age_s=0.012,
                backlog_s=0.02,
                running_items=1,
                requests_per_s=query_per_s,
                items_per_s=query_per_s,
                tokens_per_s=118.8,
                p50_ms=12.34,
                p99_ms=48.2,
            ),
            document=LiveLane(
                waiting_items=16_000,
                waiting_tokens=2_100_000,
                oldest_age_s=12.3,
                backlog_s=48.1,
                running_items=64,
                requests_per_s=2.1,
                items_per_s=134,
                tokens_per_s=9_800,
                p50_ms=2_300,
                p99_ms=5_120,
            ),
            batch=LiveLane(),
        ),
        device=LiveDevice(
            busy_ratio=busy_ratio,
            num_workers=2,
            num_ready_workers=num_ready,
            passes_per_s=12.3,
            tokens_per_pass=512.4,
            interruptions_per_s=0.4,
        ),
        http=LiveHttp(requests_per_s=15.3, client_errors_per_s=0.3, server_errors_per_s=0.1, in_flight=5),
        gpus=gpus,
    )


def with_history(one: LiveSnapshot, *, query_per_s: Series, busy_ratio: Series) -> LiveSnapshot:
    """The reading, and what it tells of the seconds before it; the other lanes were idle."""
    num_seconds = len(busy_ratio)
    zeros: Series = tuple(None if ratio is None else 0.0 for ratio in busy_ratio)
    none: Series = (None,) * num_seconds

    def lane(requests_per_s: Series) -> LiveLaneHistory:
        return LiveLaneHistory(
            waiting_items=zeros,
            backlog_s=zeros,
            requests_per_s=requests_per_s,
            refused_per_s=zeros,
            items_per_s=requests_per_s,
            tokens_per_s=zeros,
            p50_ms=none,
            p99_ms=none,
        )

    return msgspec.structs.replace(
        one,
        history=LiveHistory(
            lanes=LiveLanesHistory(query=lane(query_per_s), document=lane(zeros), batch=lane(zeros)),
            device=LiveDeviceHistory(
                busy_ratio=busy_ratio, passes_per_s=zeros, tokens_per_pass=zeros, interruptions_per_s=zeros
            ),
            http=LiveHttpHistory(
                requests_per_s=query_per_s, client_errors_per_s=zeros, server_errors_per_s=zeros
            ),
        ),
    )


def view_of(*readings: LiveSnapshot, problem: str | None = None) -> View:
    view = View(url="http://here:8000")
    for one in readings:
        view.add(one)
    view.problem = problem
    return view


def drawn(view: View, *, width: int = 140, hint: str = "") -> list[str]:
    """The lines as text, without the blanks at their ends."""
    console = Console(width=width, file=StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(render(view, width=width, hint=hint))
    return [line.rstrip() for line in capture.get().splitlines()]


# Drawing ---------------------------------------------------------------------------------------------------


def test_a_reading_is_drawn_whole():
    view = view_of(reading(time_s=0, query_per_s=4, busy_ratio=0.1), reading(time_s=1, gpus=GPUS))
    assert drawn(view, hint="q quits") == [
        "Laneway 1.2.3  ready  all-MiniLM-L6-v2  384 dimensions  256 tokens  text  float32 on cpu  up 3 h 12 min  http://here:8000",
        "",
        "lane       waiting    tokens  oldest s  backlog s  running    req/s  refused/s  items/s     tok/s    p50 ms    p99 ms  req/s, 1 min",
        "query            3        27      0.01       0.02        1     13.2          -     13.2       119      12.3      48.2  ▃█",
        "document     16.0k     2.10M      12.3       48.1       64      2.1          -      134     9,800     2,300     5,120  ██",
        "batch            0         0         -          -        0      0.0          -      0.0       0.0         -         -  ▁▁",
        "",
        "device    ████████░░  83 %  ▁▇  2 of 2 workers  12.3 passes/s  512 tokens a pass  0.4 interruptions/s",
        "http      15.3 req/s  0.3 4xx/s  0.1 5xx/s  5 in flight  over the last 10 s",
        "gpu 0     NVIDIA H200  ████████░░  80 %  23.0 of 139.0 GiB  412 W  61 °C",
        "gpu 1     NVIDIA H200 MIG",
        "",
        "q quits",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_nothing_is_wider_than_the_terminal(width: int):
    """A line that wraps pushes all below it out of their places."""
    lines = drawn(view_of(reading(gpus=GPUS)), width=width, hint="q quits")
    assert len(lines) == 13
    assert max(map(len, lines)) <= width


def test_a_narrow_terminal_keeps_what_tells_most():
    header = drawn(view_of(reading()), width=60)[2].split("  ")
    assert [title.strip() for title in header if title] == ["lane", "waiting", "backlog s", "refused/s", "p50 ms", "p99 ms"]  # fmt: skip


def test_columns_are_left_out_by_their_rank():
    ranks = [max(column.rank for column in fitting(LANE_COLUMNS, width)) for width in range(30, 120)]
    assert ranks == sorted(ranks)
    assert fitting(LANE_COLUMNS, 5) == []


def test_a_loading_server_shows_its_stage_and_no_model():
    first = drawn(view_of(reading(state="downloading 43%", model=None)))[0]
    assert first == "Laneway 1.2.3  downloading 43%  up 3 h 12 min  http://here:8000"


def test_a_problem_stands_below_the_last_reading():
    lines = drawn(view_of(reading(), problem="cannot reach it; trying again"))
    assert lines[0].startswith("Laneway 1.2.3")
    assert lines[-1] == "cannot reach it; trying again; the numbers are old"
    assert drawn(view_of(problem="cannot reach it"))[-1] == "cannot reach it"


@pytest.mark.parametrize(("num_ready", "is_red"), [(2, False), (1, True)])
def test_a_missing_worker_is_red(num_ready: int, is_red: bool):
    console = Console(width=140, file=StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(render(view_of(reading(num_ready=num_ready)), width=140))
    assert (f"\x1b[1;31m{num_ready} of 2 workers" in capture.get()) is is_red


def in_colour(view: View) -> list[str]:
    console = Console(width=140, file=StringIO(), force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(render(view, width=140))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_lane_that_refuses_looks_like_it(width: int):
    """Nearly all requests of a full lane are refused in no time: without this it looks well and busy."""
    full = reading()
    document = LiveLane(waiting_items=16_000, requests_per_s=52.0, refused_per_s=51.9)
    full = msgspec.structs.replace(full, lanes=msgspec.structs.replace(full.lanes, document=document))
    query, line = (one for one in drawn(view_of(full), width=width) if one.startswith(("query", "document")))
    assert ("51.9" in line, "51.9" in query) == (True, False)
    red = [one for one in in_colour(view_of(full)) if "\x1b[1;31m" in one]
    assert [re.sub(r"\x1b\[[0-9;]*m", "", one).split()[0] for one in red] == ["document", "http"]


def test_only_the_servers_own_errors_are_red():
    """A client that misspells a field is none of the operator's mistakes."""
    (http,) = [line for line in in_colour(view_of(reading())) if "4xx/s" in line]
    assert "  0.3 4xx/s  \x1b[1;31m0.1 5xx/s\x1b[0m" in http


def test_a_rare_refusal_is_not_rounded_away():
    assert [refusals(one) for one in (0, 0.01, 0.1, 51.94)] == ["-", "0.1", "0.1", "51.9"]


def test_a_view_remembers_a_minute():
    view = view_of(*(reading(time_s=float(second)) for second in range(200)))
    assert (view.points[0].time_s, view.points[-1].time_s) == (139, 199)


def test_a_clock_that_was_set_back_leaves_no_readings_of_a_time_to_come():
    view = view_of(*(reading(time_s=float(second)) for second in (100, 101, 40, 41)))
    assert [point.time_s for point in view.points] == [40, 41]


def test_the_first_reading_fills_the_charts():
    """Whoever looks because something is wrong wants to see since when, not to wait for a minute."""
    busy = (0.0,) * 30 + (1.0,) * 30
    lines = drawn(view_of(with_history(reading(time_s=100), query_per_s=busy, busy_ratio=busy)))
    (query,) = [line for line in lines if line.startswith("query")]
    assert query.endswith("  ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁█")  # beside 13.2 requests a second now
    (device,) = [line for line in lines if line.startswith("device")]
    assert f"  {'▁' * 10}{'█' * 10}  " in device


def test_history_goes_on_with_readings_and_fills_what_was_missed():
    view = view_of(
        with_history(reading(time_s=100), query_per_s=(1, 2), busy_ratio=(0.1, 0.2)),
        reading(time_s=101, query_per_s=4),
        with_history(reading(time_s=104, query_per_s=7), query_per_s=(9, 4, 5, 6), busy_ratio=(0.1,) * 4),
    )
    assert [point.time_s for point in view.points] == [98, 99, 100, 101, 102, 103, 104]
    assert [point.requests_per_s[0] for point in view.points] == [1, 2, 13.2, 4, 5, 6, 7]


def test_seconds_of_which_the_server_knows_nothing_are_left_out():
    view = view_of(with_history(reading(time_s=9), query_per_s=(None, 2), busy_ratio=(None, 0.2)))
    assert [(point.time_s, point.requests_per_s) for point in view.points] == [
        (8, (2, 0, 0)),
        (9, (13.2, 2.1, 0)),
    ]


def test_many_readings_in_a_second_are_one_point():
    """Five a second would fill the right half of a chart that has a minute."""
    view = view_of(*(reading(time_s=100 + step / 5) for step in range(50)))
    assert [point.time_s for point in view.points] == [second + 0.8 for second in range(100, 110)]


@pytest.mark.parametrize(
    ("asked_s", "last_s", "due_s"),
    [
        (500.0, None, MINUTE_S),  # the first question
        (500.0, 499.0, 0),
        (500.0, 498.7, 0),  # a little late
        (500.0, 498.0, 2),  # every two seconds is all there is, or the server was slow
        (500.0, 470.5, 30),
        (500.0, 100.0, MINUTE_S),
    ],
)
def test_history_is_asked_for_where_readings_are_missing(asked_s: float, last_s: float | None, due_s: int):
    assert history_due_s(asked_s, last_s) == due_s


def test_a_reading_ends_a_problem():
    view = view_of(problem="cannot reach it")
    view.add(reading())
    assert view.problem is None


# Numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "width", "top", "bars"),
    [
        ([], 5, None, ""),
        ([1, 2], 0, None, ""),
        ([0, 0], 5, None, "▁▁"),
        ([0, 1, 2, 4, 8], 5, None, "▁▂▃▅█"),
        ([0, 9, 0, 0, 0, 0], 3, None, "█▁▁"),  # a peak is never averaged away
        ([0.5, 1.0, 2.0], 3, 1.0, "▅██"),
    ],
)
def test_a_sparkline(values: list[float], width: int, top: float | None, bars: str):
    assert sparkline(values, width=width, top=top) == bars


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (999_949, "999.9k"), (999_950, "1.00M"), (2_100_000, "2.10M")],
)  # fmt: skip
def test_counts_stay_short(number: int, text: str):
    assert count(number) == text


def test_numbers_show_the_digits_that_are_worth_reading():
    assert [rate(one) for one in (0, 0.44, 99.94, 99.96, 12_345)] == ["0.0", "0.4", "99.9", "100", "12.3k"]
    assert [seconds(one) for one in (0, 0.012, 9.994, 48.13, 4_000)] == ["-", "0.01", "9.99", "48.1", "4,000.0"]  # fmt: skip
    assert [milliseconds(one) for one in (None, 0.0, 12.34, 99.96, 5_120)] == ["-", "0.0", "12.3", "100", "5,120"]  # fmt: skip
    assert [duration(one) for one in (0, 59.9, 61, 3_600, 90_061)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]  # fmt: skip


# Asking ----------------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What a server answers ``/live`` with, and what it was asked with."""

    status: int = 200
    body: bytes = field(default_factory=lambda: msgspec.json.encode(reading()))
    keys: list[bytes | None] = field(default_factory=list)
    queries: list[bytes] = field(default_factory=list)


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(answers: Answers) -> Generator[Running]:
    @living
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert (scope["method"], scope["path"]) == ("GET", "/live")
        answers.keys.append(dict(scope["headers"]).get(b"authorization"))
        answers.queries.append(scope["query_string"])
        headers = [(b"content-length", str(len(answers.body)).encode())]
        await send({"type": "http.response.start", "status": answers.status, "headers": headers})
        await send({"type": "http.response.body", "body": answers.body})

    with running(app) as it:
        yield it


def url_of(server: Running) -> str:
    return f"http://127.0.0.1:{server.address[1]}"


@pytest.mark.parametrize(
    "path", ["", "/", "/v1", "/v1/", "/ui", "/ui/", "/ui#playground", "/live", "/live?history_s=9"]
)
def test_an_address_will_do_wherever_it_was_copied_from(server: Running, answers: Answers, path: str):
    """Clients' base URL, the browser's line, the readings' own."""
    assert Server(url=url_of(server) + path, api_key="secret").read() == reading()
    assert answers.keys == [b"Bearer secret"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"{}", "URL wants a key; give one with --api-key"),
        (404, b"{}", "URL/live answers with status 404; is this a Laneway?"),
        (200, b"[]", "URL/live is not what this version reads (Expected `object`, got `array`); is it another version's?"),
        (200, b"<html>", "URL/live is not what this version reads (JSON is malformed: invalid character (byte 0)); is it another version's?"),
    ],
)  # fmt: skip
def test_what_is_no_reading_is_one_line(
    server: Running, answers: Answers, status: int, body: bytes, message: str
):
    answers.status, answers.body = status, body
    with pytest.raises(NoReadingError) as caught:
        Server(url=url_of(server)).read()
    assert str(caught.value) == message.replace("URL", url_of(server))


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://here:eight", "http://a..b", "http://[here"])
def test_what_is_no_url_is_said_so(url: str):
    with pytest.raises(NoReadingError) as caught:
        Server(url=url).read()
    assert str(caught.value).startswith(f'"{url}" is no address of a server: ')


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("here:8000", "http://here:8000"),
        ("127.0.0.1:18511/ui", "http://127.0.0.1:18511"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("https://here/gateway/v1", "https://here/gateway"),
        ("http://here/live/ui", "http://here/live"),
        ("http://ui", "http://ui"),
    ],
)
def test_a_url_without_a_scheme_is_http_and_loses_the_page_alone(url: str, root: str):
    assert Server(url=url).root == root


@pytest.mark.parametrize("option", [[], ["--url"]], ids=["bare", "--url"])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_the_server_is_named_with_an_option_or_without(
    server: Running, option: list[str], scheme: str, capsys: pytest.CaptureFixture[str]
):
    address = f"127.0.0.1:{server.address[1]}"
    assert run(["top", *option, f"{scheme}{address}", "--once"]) == 0
    assert capsys.readouterr().out.startswith("Laneway 1.2.3  ready")


def test_a_port_is_enough_on_this_machine(server: Running, capsys: pytest.CaptureFixture[str]):
    assert run(["top", "--port", str(server.address[1]), "--once"]) == 0
    assert capsys.readouterr().out.startswith("Laneway 1.2.3  ready")


def test_a_port_that_the_system_chose_must_be_told(capsys: pytest.CaptureFixture[str]):
    assert run(["top", "--port", "0", "--once"]) == 1
    assert capsys.readouterr().err == "laneway: the system chooses which port 0 is; give the server's URL\n"


@pytest.mark.parametrize("api_key", ["two\nlines", "snow\N{SNOWMAN}"])
def test_a_key_that_cannot_be_sent_is_said_so_and_not_shown(api_key: str, capsys: pytest.CaptureFixture[str]):
    assert run(["top", "--once", "--url", "http://127.0.0.1:9", "--api-key", api_key]) == 1
    assert capsys.readouterr().err == (
        "laneway: the key cannot be sent: a character of it is no printable ASCII, such as a line's end\n"
    )


def test_the_key_may_come_from_the_environment(
    server: Running, answers: Answers, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LANEWAY_API_KEY", "secret")
    assert run(["top", "--once", "--url", url_of(server)]) == 0
    assert answers.keys == [b"Bearer secret"]


def test_once_prints_plain_text(server: Running, capsys: pytest.CaptureFixture[str]):
    """For scripts, and for a bug report."""
    assert run(["top", "--once", "--url", url_of(server)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert [line.rstrip() for line in printed.splitlines()] == drawn(
        View(url=url_of(server), reading=reading(), points=view_of(reading()).points)
    )


def test_once_is_drawn_with_a_minute_of_history(
    server: Running, answers: Answers, capsys: pytest.CaptureFixture[str]
):
    busy = (0.0,) * 30 + (1.0,) * 30
    told = with_history(reading(), query_per_s=busy, busy_ratio=busy)
    answers.body = msgspec.json.encode(told)
    assert run(["top", "--once", "--url", url_of(server)]) == 0
    assert answers.queries == [b"history_s=60"]
    assert f"  {'▁' * 10}{'█' * 10}  " in capsys.readouterr().out


def test_where_the_output_is_no_terminal_one_reading_is_printed(
    server: Running, capsys: pytest.CaptureFixture[str], monkeypatch
):
    """``laneway top | less`` ends; the address is that of serve."""
    monkeypatch.setenv("LANEWAY_HOST", "0.0.0.0")
    monkeypatch.setenv("LANEWAY_PORT", str(server.address[1]))
    assert run(["top"]) == 0
    assert capsys.readouterr().out.startswith("Laneway 1.2.3  ready")


def test_once_without_a_server_fails_in_one_line(capsys: pytest.CaptureFixture[str]):
    with taken_socket() as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert run(["top", "--once", "--url", url]) == 1
    assert capsys.readouterr().err == f"laneway: cannot reach {url}: Connection refused\n"


@pytest.mark.parametrize("interval", ["0.1", "0", "-1", "nan", "4000"])
def test_a_foolish_interval_is_refused(capsys: pytest.CaptureFixture[str], interval: str):
    assert run(["top", "--interval", interval]) == 2
    assert "It must be between 0.2 and 3600 seconds." in capsys.readouterr().err


# In a terminal ---------------------------------------------------------------------------------------------


class Terminal:
    """A terminal with a program in it, whose output is read by a thread, as a screen would take it."""

    def __init__(self, *argv: str, width: int = 140, height: int = 30) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.slave)
        self._shown = ""
        self._has_more = threading.Condition()
        # Whoever sets these, as processes of pytest-xdist do, decides on the size whatever the terminal's is.
        inherited = {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from app.cli import main; main()", *argv],
            cwd=ROOT,
            env={**inherited, "TERM": "xterm-256color"},
            preexec_fn=lambda: os.login_tty(self.slave),
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def resize(self, width: int, height: int = 30) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def _read(self) -> None:
        with suppress(OSError):  # how the end of a terminal reads (pty(7))
            while data := os.read(self.master, 65536):
                with self._has_more:
                    self._shown += data.decode(errors="replace")
                    self._has_more.notify_all()

    def wait_for(self, pattern: str) -> str:
        """All that was shown, once it holds the pattern."""
        with self._has_more:
            assert self._has_more.wait_for(lambda: re.search(pattern, self._shown, re.DOTALL), 10), (
                self._shown
            )
            return self._shown

    def forget(self) -> None:
        with self._has_more:
            self._shown = ""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)


@contextmanager
def terminal(*argv: str) -> Generator[Terminal]:
    it = Terminal(*argv)
    try:
        yield it
    finally:
        it.process.kill()
        it.process.wait()
        os.close(it.slave)
        it.reader.join(10)
        os.close(it.master)


def check_left_clean(it: Terminal) -> None:
    """The program ended well, its screen is gone, its cursor back, and keys are echoed as they were."""
    assert it.process.wait(10) == 0
    shown = it.wait_for(re.escape("\x1b[?1049l"))
    assert "\x1b[?25l" not in shown[shown.rindex("\x1b[?25h") :]
    assert termios.tcgetattr(it.slave) == it.before


@pytest.mark.parametrize("end", [b"q", b"\x03"], ids=["q", "Ctrl+C"])
def test_it_watches_until_told_to_stop_and_leaves_the_terminal_as_it_was(
    server: Running, answers: Answers, end: bytes
):
    with terminal("top", "--url", url_of(server), "--interval", "0.2") as it:
        shown = it.wait_for("document.*q quits.*document")
        assert "\x1b[?1049h" in shown  # a screen of its own
        # History once, and then what is as cheap as it gets.
        assert answers.queries[:2] == [b"history_s=60", b""]
        it.type(end)
        check_left_clean(it)


def test_a_terminated_view_leaves_the_terminal_as_it_was_too(server: Running):
    with terminal("top", "--url", url_of(server)) as it:
        it.wait_for("q quits")
        it.process.send_signal(signal.SIGTERM)
        check_left_clean(it)


def test_a_resized_terminal_is_filled_at_once(server: Running):
    """The interval is an hour: only the signal can have drawn it anew."""
    with terminal("top", "--url", url_of(server), "--interval", "3600") as it:
        it.wait_for("items/s.*q quits")
        it.forget()
        it.resize(60)
        shown = it.wait_for("q quits")
        assert "backlog" in shown
        assert "items/s" not in shown
        it.type(b"q")
        check_left_clean(it)


def test_a_server_that_comes_back_is_watched_again(answers: Answers):
    """Restarts are what one watches."""
    sock = taken_socket()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with terminal("top", "--url", url, "--interval", "0.2") as it:
        it.wait_for("cannot reach .*: Connection refused; trying again")
        sock.listen()
        sock.settimeout(10)
        connection, _ = sock.accept()
        connection.recv(65536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answers.body) + answers.body
        )
        connection.close()
        it.wait_for("all-MiniLM-L6-v2")
        sock.close()
        it.wait_for("the numbers are old")
        it.type(b"q")
        check_left_clean(it)


def test_a_server_that_does_not_answer_does_not_hold_the_keys():
    with bind_socket("127.0.0.1", 0) as sock, terminal("top", "--url", f"http://127.0.0.1:{sock.getsockname()[1]}") as it:  # fmt: skip
        sock.listen()
        sock.settimeout(10)
        connection, _ = sock.accept()  # and no word
        started = time.monotonic()
        it.type(b"q")
        check_left_clean(it)
        assert time.monotonic() - started < 2.5
        connection.close()
