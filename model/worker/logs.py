"""How a worker process logs: one line a record, to stderr, no input in it."""

import logging
import os
import traceback
from types import TracebackType

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
_MAX_TEXT_CHARS = 400
"""A CUDA error explains itself over many lines; the first say what happened."""


def configure_logging() -> None:
    """Send this process's log and warnings to stderr, one line a record."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine(f"%(levelname)s worker[{os.getpid()}] %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", " | ")

    def formatException(self, ei: _ExceptionInfo) -> str:
        _, error, trace = ei
        frames = traceback.extract_tb(trace)
        path = " > ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in frames)
        return f"{type(error).__name__}: {one_line(str(error))} [{path}]"


def one_line(text: str) -> str:
    """The text on one line, cut where it gets long."""
    joined = " ".join(text.split())
    return joined if len(joined) <= _MAX_TEXT_CHARS else joined[:_MAX_TEXT_CHARS] + "..."
