"""What a gate says: whatever a strange checkpoint makes of us is a refusal in one line, not a crash."""

from collections.abc import Generator
from contextlib import contextmanager

from model.errors import CheckpointError


@contextmanager
def gate(what: str) -> Generator[None]:
    """Turn any exception of the block into a ``CheckpointError`` that begins with ``what``."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what} ({type(error).__name__}: {first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """The first line of its message that says something, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
