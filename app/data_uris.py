"""What a string says of itself in its first characters: a data URI (RFC 2397), another scheme, or neither.

Law: nothing here looks further than the head. Behind it may be 27 million characters of base64: to strip
them, or to search them for a blank, takes milliseconds in which nobody else is served.
"""

import re
from dataclasses import dataclass

MAX_HEAD_CHARS = 256
"""Up to the comma of a data URI; media types are short."""
MAX_BLANKS = 65_536
"""White space before it; looking through so much takes 0.3 ms."""

_BLANKS = re.compile(r"\s*")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE | re.ASCII)
_HEAD = re.compile(r"data:([^,]*),", re.IGNORECASE | re.ASCII)
_IMAGE_TYPES = ("image/", "application/octet-stream;", ";base64")
_IMAGE_START = re.compile(r"data:image/", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataURIHead:
    """What stands before the data."""

    media_type: str
    """In lower case, with its parameters: ``image/png;base64``."""
    data_start: int
    """Where the data begins in the string."""

    @property
    def is_base64(self) -> bool:
        """Whether the data is in base64."""
        return self.media_type.endswith(";base64")


def scheme_of(text: str) -> str | None:
    """The scheme of a URL, in lower case; ``None`` if the string does not begin like one."""
    scheme = _match(_SCHEME, text)
    return scheme and scheme[1].lower()


def data_uri_head(text: str) -> DataURIHead | None:
    """The head of a data URI; ``None`` if the string is none, or its comma is far off."""
    head = _match(_HEAD, text)
    return head and DataURIHead(media_type=head[1].strip().lower(), data_start=head.end())


def is_image_uri(text: str) -> bool:
    """Whether a string begins with the whole head of an image in base64, and so is meant to be one.

    Also without a type, or with that of bytes of any kind: what clients write that did not look at the file.
    """
    head = data_uri_head(text)
    return head is not None and head.is_base64 and head.media_type.startswith(_IMAGE_TYPES)


def starts_image_uri(text: str) -> bool:
    """Whether a string begins like an image's data URI, be the rest missing."""
    return _match(_IMAGE_START, text) is not None


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Match at the first character that is not white space."""
    blanks = _BLANKS.match(text, 0, MAX_BLANKS)
    start = 0 if blanks is None else blanks.end()
    return pattern.match(text, start, start + MAX_HEAD_CHARS)
