"""What a log line says, what it never says, and where it goes."""

import errno
import io
import json
import logging
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import structlog

from app.cli import run
from app.logs import (
    JsonFormatter,
    LogFile,
    LogFileError,
    TextFormatter,
    configure_logging,
    fields,
    request_id_var,
    trace_id_var,
)
from app.settings import LogFormat, LogLevel, ServerSettings
from batching import EntryFailedError, Lane, QueueFullError, RunnerLostError
from model import PassFailedError, WorkerDiedError
from tests.app.fakes import MULTIMODAL, FakeEngine, Gateway

TEXT = "the client's own words"
KEY = "sk-of-the-client"
IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkp"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Generator[None]:
    """Logging is the process's: what a test configures is put back."""
    root = logging.getLogger()
    handlers, level, srcfile = root.handlers[:], root.level, logging._srcfile
    loggers = {name: logging.getLogger(name).level for name in ("app", "batching", "model", "laneway", "uvicorn.error")}  # fmt: skip
    switches = logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, previous in loggers.items():
        logging.getLogger(name).setLevel(previous)
    logging._srcfile = srcfile
    logging.logThreads, logging.logProcesses, logging.logMultiprocessing = switches
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Written:
    """What an operator would read."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(capsys)


# The line of a request -------------------------------------------------------------------------------------


async def test_a_request_is_one_line_with_all_that_is_known_of_it(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.AUTO)
    await Gateway().embed(["one two", "three"], {"x-request-id": "mine"})
    (line,) = stderr.lines
    assert line.pop("time").endswith("+00:00")
    duration_ms = line.pop("duration_ms")
    assert line.pop("message") == f"POST /v1/embeddings 200 {duration_ms} ms"
    assert line == {
        "level": "info",
        "logger": "app.observe",
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "lane": "document",
        "model": "tiny",
        "items": 2,
        "tokens": 3,
        "queue_ms": 1.5,
        "worker_ms": 0.7,
        "device_ms": 4.0,
    }


async def test_a_refused_request_says_why_and_of_which_lane(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    refusal = QueueFullError(Lane.QUERY, what="entries", num_waiting=9, limit=9, num_new=1, retry_after_s=1.0)
    await Gateway(FakeEngine(failure=refusal)).embed("a")
    (line,) = stderr.lines
    told = {key: line[key] for key in ("status", "lane", "items", "reason", "code")}
    assert told == {"status": 429, "lane": "query", "items": 1, "reason": "overloaded", "code": "queue_full"}
    assert line["message"].endswith(" ms queue_full")
    assert "tokens" not in line


def lost_with(cause: WorkerDiedError) -> RunnerLostError:
    lost = RunnerLostError(str(cause))
    lost.__cause__ = cause
    return lost


@pytest.mark.parametrize(
    "cause",
    [
        PassFailedError("it raised", pid=1234, pass_id=7),
        lost_with(WorkerDiedError("it died", pid=1234, pass_id=7)),
    ],
    ids=repr,
)
async def test_a_request_that_failed_in_a_pass_names_its_worker_and_the_pass(
    stderr: Written, cause: Exception
):
    """The worker's own line, which has the cause, has the same numbers."""
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    answer = await Gateway(FakeEngine(failure=EntryFailedError(0, cause))).embed("a")
    failed, _ = stderr.lines
    assert failed["message"] == "POST /v1/embeddings failed: worker[1234] pass 7"
    assert (failed["worker_pid"], failed["pass"]) == (1234, 7)
    assert b"1234" not in answer.body


async def test_a_request_that_failed_in_no_pass_names_none(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    await Gateway(FakeEngine(failure=RuntimeError("it raised"))).embed("a")
    failed, _ = stderr.lines
    assert failed["message"] == "POST /v1/embeddings failed"
    assert failed.keys().isdisjoint({"worker_pid", "pass"})


async def test_a_request_that_was_not_understood_has_no_lane(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    await Gateway().embed([])
    (line,) = stderr.lines
    assert (line["status"], line["reason"], "lane" in line) == (400, "validation", False)


@pytest.mark.parametrize("log_format", [LogFormat.JSON, LogFormat.TEXT])
@pytest.mark.parametrize(
    "body",
    [
        {"model": "tiny", "input": TEXT},
        {"model": TEXT, "input": "a"},
        {"model": "tiny", "input": "a", "user": TEXT, TEXT: 1},
        {"model": "tiny", "input": [[TEXT]]},
        {"model": "tiny", "input": [{"image": f"data:image/png;base64,{IMAGE}"}]},
        {"model": "tiny", "input": [{"image": f"https://{KEY}@127.0.0.1/{IMAGE}.png?{KEY}"}]},
        TEXT.encode() + KEY.encode(),
    ],
    ids=["text", "model", "user", "shape", "base64", "url", "no json"],
)
async def test_no_line_holds_what_a_client_sent(stderr: Written, log_format: LogFormat, body: object):
    """Not even at ``debug``, and not when everything fails over it."""
    configure_logging(LogLevel.DEBUG, log_format)
    engine = FakeEngine(info_=MULTIMODAL, failure=RuntimeError(f"cannot read {TEXT} {KEY} {IMAGE}"))
    headers = {"authorization": f"Bearer {KEY}", "cookie": KEY, "user-agent": KEY}
    gateway = Gateway(engine)
    await gateway.post(f"/v1/embeddings?key={KEY}", body, headers)
    await gateway.post(f"/{TEXT}/{KEY}", body, headers)
    written = stderr.text
    assert "unmatched 404" in written
    for secret in (TEXT, KEY, IMAGE, "127.0.0.1/"):
        assert secret not in written


# One way for all -------------------------------------------------------------------------------------------


def test_libraries_and_structlog_write_the_same_lines(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    token = request_id_var.set("mine")
    logging.getLogger("some.library").warning("%d left", 3)
    structlog.stdlib.get_logger("other.library").warning("%d left", 2, disk="full")
    logging.getLogger("batching.x").info("a lane", extra=fields(lane="query"))
    request_id_var.reset(token)
    first, second, third = stderr.lines
    assert first.keys() == {"time", "level", "logger", "message", "request_id"}
    assert (second["message"], second["logger"], second["level"], second["disk"]) == (
        "2 left", "other.library", "warning", "full"
    )  # fmt: skip
    assert (third["lane"], third["request_id"]) == ("query", "mine")


def test_libraries_begin_at_warning(stderr: Written):
    """HTTP clients log whole URLs at ``info``, keys in them included."""
    configure_logging(LogLevel.DEBUG, LogFormat.JSON)
    logging.getLogger("some.library").info("GET https://here/?key=1")
    structlog.stdlib.get_logger("other.library").info("GET https://here/?key=1")
    logging.getLogger("laneway.worker").debug("ours")
    assert [line["message"] for line in stderr.lines] == ["ours"]


def test_a_line_names_its_trace(stderr: Written):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    token = trace_id_var.set("0af7651916cd43dd8448eb211c80319c")
    logging.getLogger("app.x").info("traced")
    trace_id_var.reset(token)
    logging.getLogger("app.x").info("not traced")
    traced, other = stderr.lines
    assert traced["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "trace_id" not in other


@pytest.mark.parametrize("get_logger", [logging.getLogger, structlog.stdlib.get_logger])
def test_an_exception_in_a_request_is_shown_without_its_words(
    stderr: Written, get_logger: Callable[[str], Any]
):
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    for request_id in ("mine", None):
        token = request_id_var.set(request_id)
        try:
            raise ValueError(TEXT)
        except ValueError:
            get_logger("app.x").exception("it failed")
        request_id_var.reset(token)
    inside, outside = stderr.lines
    assert inside["exception"].endswith("builtins.ValueError")
    assert TEXT not in inside["exception"]
    assert outside["exception"].endswith(f"ValueError: {TEXT}")


@pytest.mark.parametrize(
    "value", ["\udcff", 2**70, {1: "x"}, {(1, 2): "x"}, object()], ids=lambda value: type(value).__name__
)
def test_whatever_is_told_becomes_json(stderr: Written, value: object):
    """A path that is no UTF-8 must not cost the line."""
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    logging.getLogger("app.x").info("an odd one", extra=fields(value=value))
    (line,) = stderr.lines
    assert line["message"] == "an odd one"
    assert "value" in line


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError(TEXT)


def test_a_line_that_cannot_be_written_harms_nobody_and_tells_nothing(stderr: Written):
    """What logging itself prints then holds the arguments."""
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    logging.getLogger("app.x").info("%s %s", TEXT, Unwritable())
    assert stderr.text == "a log line of app.x was lost: RuntimeError\n"


def test_a_broken_pipe_harms_nobody(monkeypatch: pytest.MonkeyPatch):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Broken())
    configure_logging(LogLevel.INFO, LogFormat.JSON)
    logging.getLogger("app.x").info("nobody reads this")


# For people ------------------------------------------------------------------------------------------------


def record_of(level: int, message: str, **told: object) -> logging.LogRecord:
    record = logging.LogRecord("app.x", level, "", 0, message, (), None)
    record.request_id = "mine"
    record.__dict__.update(fields(**told))
    return record


def test_a_text_line_says_what_a_request_took():
    record = record_of(logging.INFO, "POST /v1/embeddings 200 12.5 ms", status=200, lane="query", model="tiny", items=1, tokens=9, queue_ms=0.2, worker_ms=0.4, device_ms=8.1)  # fmt: skip
    shown = TextFormatter().format(record)
    assert re.match(r"\d\d:\d\d:\d\d ", shown)
    assert shown[9:] == (
        "info    POST /v1/embeddings 200 12.5 ms query 1 item 9 tokens queue 0.2 ms worker 0.4 ms device 8.1 ms [mine]"
    )


def test_a_text_line_ends_with_its_trace():
    """Whole: what shows traces finds none by a part of it."""
    record = record_of(logging.INFO, "something")
    record.trace_id = "0af7651916cd43dd8448eb211c80319c"
    assert TextFormatter().format(record)[9:] == (
        "info    something [mine] [trace 0af7651916cd43dd8448eb211c80319c]"
    )


@pytest.mark.parametrize(
    ("level", "colour"), [(logging.INFO, "32"), (logging.WARNING, "33"), (logging.ERROR, "31"), (logging.DEBUG, "2")]
)  # fmt: skip
def test_levels_differ_in_colour(level: int, colour: str):
    shown = TextFormatter(in_colour=True).format(record_of(level, "something"))
    name = logging.getLevelName(level).lower()
    assert f"\x1b[{colour}m{name:<7}\x1b[0m something " in shown


@pytest.mark.parametrize(
    ("stream", "no_colour", "is_coloured"),
    [(Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)],
)
def test_only_a_terminal_that_may_be_coloured_is(monkeypatch, stream, no_colour: str, is_coloured: bool):
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging(LogLevel.INFO, LogFormat.TEXT)
    logging.getLogger("app.x").info("something")
    assert ("\x1b[" in stream.getvalue()) is is_coloured


def test_a_formatter_leaves_the_record_to_others():
    """Handlers share records: what one writes of it must not depend on who wrote before."""
    record = record_of(logging.INFO, "something", status=200)
    first = JsonFormatter().format(record)
    TextFormatter().format(record)
    assert JsonFormatter().format(record) == first


# Files -----------------------------------------------------------------------------------------------------

HOUR_S = 3600


class Log:
    """The gateway's log in a file, written by records of chosen times."""

    def __init__(self, path: Path, **bounds: Any) -> None:
        self.file = LogFile(path=path, **({"max_bytes": 0, "max_age_s": 0, "num_kept": 2} | bounds))
        self.restart()

    def restart(self) -> None:
        configure_logging(LogLevel.INFO, LogFormat.AUTO, self.file)

    def write(self, message: str, *, at_s: float | None = None) -> None:
        record = logging.LogRecord("app.x", logging.INFO, "", 0, message, (), None)
        record.created = record.created if at_s is None else at_s
        logging.getLogger("app.x").handle(record)

    @property
    def files(self) -> dict[str, list[str]]:
        """The messages in each file of the folder."""
        return {
            path.name: [json.loads(line)["message"] for line in path.read_text().splitlines()]
            for path in sorted(self.file.path.parent.iterdir())
        }


def test_the_settings_name_the_file(tmp_path: Path):
    settings = ServerSettings(log_file=str(tmp_path / "x"), log_file_bytes=5, log_file_hours=0.5, log_files_kept=3)  # fmt: skip
    expected = LogFile(path=tmp_path / "x", max_bytes=5, max_age_s=1800, num_kept=3)
    assert LogFile.from_settings(settings) == expected
    assert LogFile.from_settings(ServerSettings()) is None


def test_a_file_has_json_lines_and_standard_error_none(tmp_path: Path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    log = Log(tmp_path / "log")
    log.write("one")
    log.restart()
    log.write("two")
    assert log.files == {"log": ["one", "two"]}
    assert terminal.getvalue() == ""


def test_a_full_file_makes_room_for_another_and_the_oldest_goes(tmp_path: Path):
    log = Log(tmp_path / "log", max_bytes=400)
    for number in range(20):
        log.write(f"line {number:02}")
    files = log.files
    assert files.keys() == {"log", "log.1", "log.2"}
    kept = [*files["log.2"], *files["log.1"], *files["log"]]
    assert kept == [f"line {number:02}" for number in range(20 - len(kept), 20)]
    assert all(path.stat().st_size <= 400 for path in tmp_path.iterdir())


def test_a_line_that_is_larger_than_a_file_has_one_of_its_own(tmp_path: Path):
    log = Log(tmp_path / "log", max_bytes=10)
    log.write("one")
    log.write("two")
    assert log.files == {"log": ["two"], "log.1": ["one"]}


def test_a_file_ends_with_its_hour(tmp_path: Path):
    """The clock's hour, not one since the start: files of several servers fit together."""
    log = Log(tmp_path / "log", max_age_s=HOUR_S)
    log.write("15:59:59", at_s=100_000 * HOUR_S - 1)
    log.write("16:00:00", at_s=100_000 * HOUR_S)
    log.write("16:59:59", at_s=100_001 * HOUR_S - 1)
    log.write("19:00:00", at_s=100_003 * HOUR_S)
    assert log.files == {"log": ["19:00:00"], "log.1": ["16:00:00", "16:59:59"], "log.2": ["15:59:59"]}


def test_a_restart_does_not_begin_the_hour_anew(tmp_path: Path):
    path = tmp_path / "log"
    log = Log(path, max_age_s=HOUR_S)
    log.write("earlier", at_s=100_000 * HOUR_S + 5)
    os.utime(path, (100_000 * HOUR_S + 5,) * 2)
    log.restart()
    log.write("the same hour", at_s=100_000 * HOUR_S + 10)
    log.write("the next", at_s=100_001 * HOUR_S)
    assert log.files == {"log": ["the next"], "log.1": ["earlier", "the same hour"]}


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path):
    """logrotate(8) moves it, and need not tell us."""
    log = Log(tmp_path / "log")
    log.write("one")
    (tmp_path / "log").rename(tmp_path / "moved")
    log.write("two")
    (tmp_path / "log").unlink()
    log.write("three")
    assert log.files == {"log": ["three"], "moved": ["one"]}


def test_a_folder_that_went_away_loses_lines_and_no_requests(tmp_path: Path, stderr: Written):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = Log(folder / "log")
    (folder / "log").unlink()
    folder.rmdir()
    log.write("one")
    assert stderr.text == "a log line of app.x was lost: FileNotFoundError\n"
    folder.mkdir()
    log.write("two")
    assert log.files == {"log": ["two"]}


@pytest.mark.parametrize("bounds", [{"max_age_s": HOUR_S}, {"max_bytes": 700}], ids=["age", "size"])
def test_a_file_that_cannot_be_put_away_is_written_on_and_tried_again(
    tmp_path: Path, stderr: Written, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, int]
):
    """Its folder may be read-only, while the file that was opened there before is not."""
    attempts: list[Path] = []

    def refuse(path: Path, target: Path) -> None:
        attempts.append(path)
        raise PermissionError(errno.EACCES, "Permission denied")

    log = Log(tmp_path / "log", **bounds)
    messages = [f"{hour} {half}" + 150 * "." for hour in range(4) for half in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        for number, message in enumerate(messages):
            log.write(message, at_s=(100_000 + number / 2) * HOUR_S)
    # One attempt an hour, or one for so many bytes, and not one a line.
    assert 2 <= len(attempts) <= len(messages) / 2
    assert log.files == {"log": messages}
    assert stderr.text == f"the log file {tmp_path / 'log'} cannot be put away: Permission denied\n"
    log.write("later" + 300 * ".", at_s=100_004 * HOUR_S)
    assert log.files == {"log": ["later" + 300 * "."], "log.1": messages}


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path):
    with pytest.raises(LogFileError, match=f"^cannot write the log file {tmp_path}: Is a directory$"):
        Log(tmp_path)


def test_a_server_without_its_log_file_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setenv("LANEWAY_PORT", "0")
    missing = tmp_path / "missing" / "log"
    assert run(["serve", "--log-file", str(missing)]) == 1
    line = f"laneway: cannot write the log file {missing}: No such file or directory\n"
    assert capsys.readouterr().err == line


def test_a_text_line_in_a_file_has_its_day_and_its_zone():
    """A file is read days later, and elsewhere."""
    shown = TextFormatter(with_date=True).format(record_of(logging.INFO, "something"))
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d ", shown)
