"""How the program logs: one line an event, for people on a terminal, as JSON for machines elsewhere.

Law of this file: no line holds an input or a key. What we log ourselves names neither; what libraries raise
may quote the value it stumbled over, so an exception that is logged inside a request shows its types and its
frames, and not its message.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime

import msgspec
from typing_extensions import override

from app.settings import LogFormat, LogLevel

request_id_var: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the current task serves."""

_encoder = msgspec.json.Encoder(enc_hook=str)

OUR_LOGGERS = ("app", "batching", "model")
"""The rooms. All others begin at ``warning``: HTTP clients, for one, log whole URLs at ``info``."""


def logs_as_json(log_format: LogFormat) -> bool:
    """Whether log lines are JSON: where it was asked for, or where nobody reads along on a terminal."""
    if log_format is LogFormat.AUTO:
        return not sys.stderr.isatty()
    return log_format is LogFormat.JSON


def configure_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Send every log line to standard error, replacing what was set up before."""
    handler = _StandardError()
    handler.addFilter(_add_request_id)
    handler.setFormatter(JsonFormatter() if logs_as_json(log_format) else TextFormatter())
    root = logging.getLogger()
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


class _StandardError(logging.Handler):
    """Writes to what ``sys.stderr`` is now: a progress bar replaces it to keep lines out of its way."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except OSError:
            self.handleError(record)


def fields(**values: object) -> dict[str, object]:
    """``extra=fields(status=200)``: values that become keys of the JSON line; a text line has its message."""
    return {"fields": values}


def _add_request_id(record: logging.LogRecord) -> bool:
    # Here and not in the formatter: a handler may format later, in another task.
    record.request_id = request_id_var.get()
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            line["request_id"] = request_id
        extra = getattr(record, "fields", None)
        if isinstance(extra, Mapping):
            line.update(extra)  # pyright: ignore[reportUnknownArgumentType] - our own ``fields``
        if record.exc_info and record.exc_info[1]:
            line["exception"] = format_exception(record.exc_info[1], with_message=request_id is None)
        return _encoder.encode(line).decode()


class TextFormatter(logging.Formatter):
    """A line to read: time, level, message, request."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        request_id = getattr(record, "request_id", None)
        line = f"{time} {record.levelname.lower():<7} {record.getMessage()}"
        if request_id is not None:
            line += f" [{request_id}]"
        if record.exc_info and record.exc_info[1]:
            line += "\n" + format_exception(record.exc_info[1], with_message=request_id is None)
        return line


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
