"""In how many scans a JPEG comes, counted without decoding any: pure.

Rule 1: a marker that libjpeg would find is found here, too, also in a broken file: what it skips by its
length is skipped by its length, and what it reads byte by byte is searched (``jdmarker.c`` of libjpeg-turbo).
So pictures in the metadata, or behind the first one, do not count, and no scan can hide in them.
"""

import re

_SOS, _EOI = b"\xff\xda", b"\xff\xd9"
# Markers with a segment behind them, and the end (ITU-T T.81, table B.1). Others stand alone, or are none.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xef\xfe]")


def has_more_scans(data: bytes, max_scans: int) -> bool:
    """Whether the first picture of a JPEG file comes in more than ``max_scans`` scans."""
    num_scans = position = 0
    while (marker := _MARKER.search(data, position)) is not None and marker[0] != _EOI:
        num_scans += marker[0] == _SOS
        if num_scans > max_scans:
            return True
        start = marker.end()
        # A length counts its own two bytes; libjpeg takes one that is smaller for nothing to skip.
        position = start + max(2, int.from_bytes(data[start : start + 2]))
    return False
