"""What is wrong with a request, as exceptions; and how client text may stand in their messages.

Law: whatever a client wrote reaches a message through ``quoted`` or ``shortened``. An answer, and a log line,
must not grow with what was sent.

RequestError
├── InvalidRequestError    the request is wrong; message and param are for the client
│   └── TokenArrayError    ... in a token array; ``outcome`` is for the counter
├── ModelNotFoundError     no model of that name is served
├── BodyEncodingError      the body is compressed
├── OverloadedError        the bodies that are being read or worked on leave no room for this one
├── ClientGoneError        the client closed the connection before its answer was ready
└── InputFailedError       the engine refused or failed one input; carries the client's name for it
"""

from collections.abc import Sequence

from app.engine import InputRefusedError
from batching import EntryFailedError


class RequestError(Exception):
    """Base of what this room raises about a request."""

    param: str | None = None
    """The part of the request that is to blame, as a path such as ``input[3].text``."""


class InvalidRequestError(RequestError):
    """The request cannot be served as it stands. The message is for the client."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class TokenArrayError(InvalidRequestError):
    """A token array cannot be read."""

    def __init__(self, message: str, *, param: str, code: str, outcome: str) -> None:
        super().__init__(message, param=param, code=code)
        self.outcome = outcome


class ModelNotFoundError(RequestError):
    """No model of that name is served here."""

    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(f"The model {quoted(name)} is not served here. Served: {', '.join(served)}.")
        self.name = name
        self.served = tuple(served)
        self.param = "model"


class BodyEncodingError(RequestError):
    """The request body is compressed; unpacking it would be unbounded work."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"Content-Encoding {quoted(encoding)} is not supported; send the body as it is.")
        self.encoding = encoding


class OverloadedError(RequestError):
    """The bodies of other requests leave no room for this one; a moment later there may be."""

    def __init__(self, *, num_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"Other requests hold {num_bytes} of the {max_bytes} bytes that there are for large bodies."
        )
        self.num_bytes = num_bytes
        self.max_bytes = max_bytes


class ClientGoneError(RequestError):
    """The client closed the connection before its answer was ready."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class InputFailedError(RequestError):
    """One input of the request was refused or failed; ``param`` is what the client calls it."""

    def __init__(self, param: str, failure: InputRefusedError | EntryFailedError) -> None:
        super().__init__(str(failure))
        self.param = param
        self.failure = failure


def quoted(text: str, *, max_chars: int = 64) -> str:
    """Client text as it may stand in a message or a log: one line, printable, short."""
    return repr(shortened(text, max_chars=max_chars))


def shortened(text: str, *, max_chars: int = 200) -> str:
    """Text that has client text somewhere in it, cut to a length that no message outgrows."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
