"""How the program logs: one line an event, for people on a terminal, as JSON for machines elsewhere.

Every line takes one way, whoever writes it: the standard library's logging, which rooms and libraries write
to, then the processors of structlog, which make a line of the record, then standard error or a file.

Laws of this file: no line holds an input or a key. What we log ourselves names neither; what libraries raise
may quote the value it stumbled over, so an exception that is logged inside a request shows its types and its
frames, and not its message. And no line that cannot be written stops whoever wrote it.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import cast

import msgspec
import structlog
from structlog.dev import Column, ConsoleRenderer, plain_traceback
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, WrappedLogger
from typing_extensions import override

from app.settings import LogFormat, LogLevel, ServerSettings

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the current task serves."""
trace_id_var: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""Its trace, where requests are traced: 32 hexadecimal digits (W3C Trace Context, 3.2.2.3)."""

_encoder = msgspec.json.Encoder(enc_hook=str)

OUR_LOGGERS = ("app", "batching", "model", "laneway")
"""The rooms. All others begin at ``warning``: HTTP clients, for one, log whole URLs at ``info``."""

_RED, _GREEN, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_LEVEL_COLOURS = {"debug": _DIM, "info": _GREEN, "warning": _YELLOW, "error": _RED, "critical": _RED}


class LogFileError(Exception):
    """The log file cannot be written. The message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A file for log lines, and when another one takes its place."""

    path: Path
    max_bytes: int
    """Begin another before it would be larger. 0: never for its size."""
    max_age_s: float
    """Begin another with every such span of the clock, counted from 1970 in UTC. 0: never for its age."""
    num_kept: int
    """Files with earlier lines that are kept: ``path.1``, the latest, to ``path.N``."""

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> "LogFile | None":
        """The file that the settings name, if they name one."""
        if settings.log_file is None:
            return None
        return cls(
            path=Path(settings.log_file),
            max_bytes=settings.log_file_bytes,
            max_age_s=settings.log_file_hours * 3600,
            num_kept=settings.log_files_kept,
        )


def logs_as_json(log_format: LogFormat, *, to_file: bool = False) -> bool:
    """Whether log lines are JSON: where it was asked for, or where nobody reads along on a terminal."""
    if log_format is LogFormat.AUTO:
        return to_file or not sys.stderr.isatty()
    return log_format is LogFormat.JSON


def configure_logging(level: LogLevel, log_format: LogFormat, file: LogFile | None = None) -> None:
    """Send every log line to standard error or to the file, replacing what was set up before.

    Raises:
        LogFileError: The file cannot be opened.
    """
    handler = _StandardError() if file is None else _open(file)
    handler.addFilter(_add_context)
    if logs_as_json(log_format, to_file=file is not None):
        handler.setFormatter(JsonFormatter())
    else:
        in_colour = file is None and _shows_colours()
        handler.setFormatter(TextFormatter(in_colour=in_colour, with_date=file is not None))
    root = logging.getLogger()
    for previous in root.handlers:
        previous.close()
    root.handlers[:] = [handler]
    numeric = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(numeric, logging.WARNING))
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(numeric)
    # Broken requests are counted and logged by our guard; uvicorn's own warnings would double each of them.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)
    # What no line of ours tells need not be found out for each; logging's own documentation names these.
    logging._srcfile = None  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # A library that logs through structlog comes the same way.
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def _shows_colours() -> bool:
    # https://no-color.org: set to anything but nothing, it asks for text alone.
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def fields(**values: object) -> dict[str, object]:
    """``extra=fields(status=200)``: values that become keys of the JSON line; a text line has its message."""
    return {"fields": values}


def _add_context(record: logging.LogRecord) -> bool:
    # Here and not in the formatter: a handler may format later, in another task.
    record.request_id = request_id_var.get()
    record.trace_id = trace_id_var.get()
    return True


# Where lines go --------------------------------------------------------------------------------------------


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is now: a progress bar replaces it to keep lines out of its way."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception as error:
            _tell_lost(record, error)


def _open(file: LogFile) -> logging.Handler:
    try:
        return _File(file)
    except OSError as error:
        raise LogFileError(f"cannot write the log file {file.path}: {error.strerror or error}") from error


class _File(logging.Handler):
    """Owns the open file, and begins another when it is due or when somebody else has taken it away."""

    _num_bytes: int
    """In the file, or since it could last not be put away."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file
        self._is_stuck = False
        self._open()

    def _open(self) -> None:
        """Open the file at its end, and note how large it is and which span of time its last line is of."""
        self._stream = self._file.path.open("ab", buffering=0)
        status = os.fstat(self._stream.fileno())
        self._identity = (status.st_dev, status.st_ino)
        self._num_bytes = status.st_size
        # The clock's own spans, so that a restart of the program neither delays the next file nor hastens it.
        self._span = self._span_of(status.st_mtime)

    def _span_of(self, time_s: float) -> int:
        return int(time_s // self._file.max_age_s) if self._file.max_age_s else 0

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="replace") + b"\n"
            is_gone = self._was_taken_away()
            if is_gone or (self._is_due(len(line), record.created) and self._could_put_away()):
                self._stream.close()
                self._open()
            self._stream.write(line)
            self._num_bytes += len(line)
            self._span = self._span_of(record.created)
        except Exception as error:
            _tell_lost(record, error)

    def _is_due(self, num_bytes: int, time_s: float) -> bool:
        if not self._num_bytes:
            return False  # an empty one in its place would be no better
        is_full = 0 < self._file.max_bytes < self._num_bytes + num_bytes
        return is_full or self._span_of(time_s) > self._span

    def _could_put_away(self) -> bool:
        """Put the file away. Where that fails it stays open and grows, until it would be due once more.

        A folder may be closed to us whose file is not; one complaint stands for all of its failures.
        """
        try:
            self._put_away()
        except OSError as error:
            self._num_bytes = 0
            if not self._is_stuck:
                _tell(f"the log file {self._file.path} cannot be put away: {error.strerror or error}")
            self._is_stuck = True
            return False
        self._is_stuck = False
        return True

    def _put_away(self) -> None:
        """Make the file the latest of those that are kept; the oldest is overwritten."""
        path = self._file.path
        kept = [path.with_name(f"{path.name}.{number}") for number in range(1, self._file.num_kept + 1)]
        for newer, older in reversed(list(pairwise(kept))):
            if newer.exists():
                newer.replace(older)
        path.replace(kept[0])

    def _was_taken_away(self) -> bool:
        # As logrotate does it. A microsecond a line.
        try:
            status = os.stat(self._file.path)
        except FileNotFoundError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    @override
    def close(self) -> None:
        self._stream.close()
        super().close()


def _tell_lost(record: logging.LogRecord, error: Exception) -> None:
    """Say that a line is lost: not what it held, which logging would print, arguments and all."""
    _tell(f"a log line of {record.name} was lost: {type(error).__name__}")


def _tell(complaint: str) -> None:
    with suppress(Exception):  # there is nowhere left to say it
        sys.stderr.write(complaint + "\n")


# What a line says ------------------------------------------------------------------------------------------


def _as_line(_logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
    """The first processor of every line: what the record knows, under the keys that a line has."""
    record = cast(logging.LogRecord, event.pop("_record"))
    del event["_from_structlog"]
    line: EventDict = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": record.name,
        "message": event.pop("event"),
    }
    request_id = getattr(record, "request_id", None)
    if request_id is not None:
        line["request_id"] = request_id
    trace_id = getattr(record, "trace_id", None)
    if trace_id is not None:
        line["trace_id"] = trace_id
    raised = event.pop("exc_info", None)
    line.update(event)  # what a library bound with structlog
    extra = getattr(record, "fields", None)
    if isinstance(extra, Mapping):
        line.update(extra)  # pyright: ignore[reportUnknownArgumentType] - our own ``fields``
    error = _error_of(raised)
    if error is not None:
        line["exception"] = format_exception(error, with_message=request_id is None)
    return line


def _error_of(raised: object) -> BaseException | None:
    """What ``exc_info`` stands for: logging resolves it to a triple, structlog leaves it as it was given."""
    if raised is True:
        return sys.exc_info()[1]
    value: object = cast("tuple[object, ...]", raised)[1] if isinstance(raised, tuple) else raised
    return value if isinstance(value, BaseException) else None


def _render_json(_logger: WrappedLogger, _level: str, line: EventDict) -> str:
    try:
        return _encoder.encode(line).decode()
    except (UnicodeEncodeError, OverflowError, TypeError):
        # A path that is no UTF-8, a number beyond 64 bits, a key that is no text.
        return json.dumps(line, default=str, skipkeys=True)


class JsonFormatter(ProcessorFormatter):
    """One JSON object a line."""

    def __init__(self) -> None:
        super().__init__(processors=[_as_line, _render_json])


class TextFormatter(ProcessorFormatter):
    """A line to read: time, level, message, what a request took, its id and its trace."""

    def __init__(self, *, in_colour: bool = False, with_date: bool = False) -> None:
        columns = _columns(in_colour=in_colour, with_date=with_date)
        renderer = ConsoleRenderer(columns=columns, exception_formatter=plain_traceback)
        super().__init__(processors=[_as_line, renderer])


@dataclass(frozen=True, slots=True)
class _Cell:
    """Writes one value of a line."""

    write: Callable[[object], str]
    colour: str = ""

    def __call__(self, key: str, value: object) -> str:
        text = self.write(value)
        return f"{self.colour}{text}{_PLAIN}" if self.colour else text


class _Level(_Cell):
    """Writes the level, each in a colour of its own."""

    def __call__(self, key: str, value: object) -> str:
        colour = _LEVEL_COLOURS.get(str(value), "") if self.colour else ""
        return _Cell(self.write, colour)(key, value)


def _columns(*, in_colour: bool, with_date: bool) -> list[Column]:
    dim = _DIM if in_colour else ""
    return [
        Column("time", _Cell(_local_moment if with_date else _local_time, dim)),
        Column("level", _Level("{!s:<7}".format, dim)),
        Column("message", _Cell(str)),
        Column("lane", _Cell(str, dim)),
        Column("items", _Cell(lambda count: f"{count} item" if count == 1 else f"{count} items", dim)),
        Column("tokens", _Cell("{} tokens".format, dim)),
        Column("queue_ms", _Cell("queue {} ms".format, dim)),
        Column("worker_ms", _Cell("worker {} ms".format, dim)),
        Column("device_ms", _Cell("device {} ms".format, dim)),
        Column("request_id", _Cell("[{}]".format, dim)),
        # Whole, long as it is: what shows traces finds none by a part of it.
        Column("trace_id", _Cell("[trace {}]".format, dim)),
        # All others: their message tells people what these tell machines.
        Column("", _Cell(lambda _: "")),
    ]


def _local_moment(stamp: object) -> str:
    """A file is read days later, and elsewhere."""
    return datetime.fromisoformat(str(stamp)).astimezone().isoformat(" ", timespec="milliseconds")


def _local_time(stamp: object) -> str:
    return datetime.fromisoformat(str(stamp)).astimezone().strftime("%H:%M:%S")


def format_exception(error: BaseException, *, with_message: bool) -> str:
    """The error and what led to it, oldest first, as Python prints it.

    Args:
        error: What was raised.
        with_message: ``False`` leaves out the exceptions' own words, which may quote a client's input.
    """
    if with_message:
        return "".join(traceback.format_exception(error)).rstrip()
    chain: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__))
        chain.append(f"{frames}{type(current).__module__}.{type(current).__qualname__}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nthen:\n\n".join(reversed(chain))
