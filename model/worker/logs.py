"""How a worker process logs: one line a record, to stderr, as text or as JSON with the gateway's keys.

The two rooms share no code, so the keys are written down in both; a test holds them together.
"""

import json
import logging
import os
import traceback
from datetime import UTC, datetime
from types import TracebackType

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
_MAX_TEXT_CHARS = 400
"""A CUDA error explains itself over many lines; the first say what happened."""


def configure_logging(*, as_json: bool) -> None:
    """Send this process's log and warnings to stderr, one line a record."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)


def of_pass(pid: int, pass_id: int) -> dict[str, object]:
    """``extra=of_pass(7, 1)``: keys of the JSON line that name the process and the pass.

    The line of a request that failed over the pass has the same numbers. Lines that are written in the
    gateway's process get them, too: its own formatter looks in the same place.
    """
    return {"fields": {"pid": pid, "pass": pass_id}}


class TextFormatter(logging.Formatter):
    """A line to read: level, process, message."""

    def __init__(self) -> None:
        super().__init__(f"%(levelname)s worker[{os.getpid()}] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Write the record on one line, its exception included."""
        return super().format(record).replace("\n", " | ")

    def formatException(self, ei: _ExceptionInfo) -> str:
        """Write the exception and where it came from on one line."""
        return _describe_exception(ei)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: the gateway's keys, and the process that the line comes from."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record as JSON, its exception included."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1]:
            line["exception"] = _describe_exception(record.exc_info)
        # Escaped to ASCII: it stays JSON whatever encoding stderr has.
        return json.dumps(line)


def one_line(text: str) -> str:
    """The text on one line, cut where it gets long."""
    joined = " ".join(text.split())
    return joined if len(joined) <= _MAX_TEXT_CHARS else joined[:_MAX_TEXT_CHARS] + "..."


def _describe_exception(info: _ExceptionInfo) -> str:
    _, error, trace = info
    path = " > ".join(
        f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in traceback.extract_tb(trace)
    )
    return f"{type(error).__name__}: {one_line(str(error))} [{path}]"
