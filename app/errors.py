"""What is wrong with a request, as exceptions; and how client text may stand in their messages.

Law: whatever a client wrote reaches a message through ``quoted`` or ``shortened``. An answer, and a log line,
must not grow with what was sent.

RequestError
├── InvalidRequestError    the request is wrong; message and param are for the client
│   └── TokenArrayError    ... in a token array; ``outcome`` is for the counter
├── ModelNotFoundError     no model of that name is served
├── BodyEncodingError      the body is compressed
├── OverloadedError        the bodies that are being read or worked on leave no room for this one
├── ImageQueueFullError    too many requests wait for their images' turn, or a query has waited too long
├── ClientGoneError        the client closed the connection before its answer was ready
└── InputFailedError       one input or its image was refused or failed; carries the client's name for it
"""

from collections.abc import Sequence

from app.preparation import InputRefusedError
from batching import EntryFailedError, Lane
from model import ImageError


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

    def __init__(self, *, num_bytes: int, max_bytes: int, waited_s: float) -> None:
        super().__init__(
            f"Other requests held {num_bytes} of the {max_bytes} bytes that there are for large bodies "
            f"(max_held_body_bytes) for {waited_s:g} seconds."
        )
        self.num_bytes = num_bytes
        self.max_bytes = max_bytes
        self.waited_s = waited_s


class ImageQueueFullError(RequestError):
    """The images of other requests leave no place for those of this one; later there may be."""

    def __init__(self, lane: Lane, what: str, *, retry_after_s: float) -> None:
        """Say what happened.

        Args:
            lane: The request's.
            what: Why it waits no longer, for the client.
            retry_after_s: When it may come back.
        """
        super().__init__(what)
        self.lane = lane
        self.retry_after_s = retry_after_s


class ClientGoneError(RequestError):
    """The client closed the connection before its answer was ready."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class InputFailedError(RequestError):
    """One input of the request was refused or failed; ``param`` is what the client calls it."""

    def __init__(self, param: str, failure: InputRefusedError | EntryFailedError | ImageError) -> None:
        super().__init__(str(failure))
        self.param = param
        self.failure = failure


def quoted(text: str, *, max_chars: int = 64) -> str:
    """Client text as it may stand in a message or a log: one line, printable, short."""
    return repr(shortened(text, max_chars=max_chars))


def shortened(text: str, *, max_chars: int = 200) -> str:
    """Text that has client text somewhere in it, cut to a length that no message outgrows."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"
