"""What crosses the socket between the gateway and a worker process.

A frame is a prefix (mark, size of the header, size of the body), a msgpack header and a body of raw
numbers: int32 token ids and uint8 pixels on the way down, float32 rows on the way up, in the machine's byte
order. The header says how the body is cut, so ids, pixels and rows are read where they arrived, uncopied.

Rule 1: sizes are checked before anything is allocated, shapes before anything is read.
Rule 2: nothing here reads or writes a socket; ``child.py`` and ``mailbox.py`` do that.
"""

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from model.types import Features, ModelInfo
from model.worker.protocol import DeviceMemory, LoadOptions

MAX_HEADER_BYTES = 128 * 1024 * 1024
"""A header with a ``ModelInfo`` holds a whole tokenizer; the largest in use are below 40 MB."""
MAX_BODY_BYTES = 1024 * 1024 * 1024
"""65,536 rows of 4,096 numbers: far above any pass, far below the memory of any machine."""

CHUNK_BYTES = 64 * 1024
"""Frames up to this size are sent by one system call and received by one: a query's, both ways."""

_PREFIX = struct.Struct("=4sIQ")
_MARK = b"LNW1"
PREFIX_BYTES = _PREFIX.size

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]

Buffer = bytes | bytearray | memoryview


class FrameError(Exception):
    """The bytes are no frame, or not one that may come here. The connection is of no more use."""


class Load(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Gateway to worker, first and once: what to load, and where to run."""

    options: LoadOptions
    loader: str
    """Import path of the loader, ``module:function``."""
    cpu: int | None
    """The one core to run on; ``None``: wherever the kernel likes."""


class Run(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Gateway to worker: one pass. Body: the token ids of all inputs, then the pixels of all images."""

    pass_id: _Count
    lengths: Annotated[tuple[_Positive, ...], msgspec.Meta(min_length=1)]
    """Tokens of each input."""
    prompt_lengths: tuple[_Count, ...]
    dropped_lengths: tuple[_Count, ...]
    image_sizes: tuple[tuple[tuple[_Positive, _Positive], ...], ...] = ()
    """Height and width of each input's images; empty where no input has any."""
    image_lengths: tuple[_Count, ...] = ()
    """Tokens that stand for images in each input; empty with ``image_sizes``."""
    is_urgent: bool = False
    """It runs before those that are not, and nothing interrupts it."""
    may_interrupt: bool = False
    """Being urgent, it need not wait for the end of a pass that is not."""


class Stop(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Gateway to worker: end, when the passes that came before are answered."""


class Stage(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Worker to gateway: how far loading is."""

    text: str


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Worker to gateway: the model is loaded, passes may come."""

    info: ModelInfo
    gpu_uuid: str | None = None
    memory: DeviceMemory | None = None
    """``None`` but on CUDA, here and below."""


class LoadFailed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Worker to gateway: the model cannot be loaded. The process ends after it."""

    message: str
    """One line for the operator."""


class Rows(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Worker to gateway: the answer to a pass. Body: ``[num_rows, dimension]`` float32."""

    pass_id: _Count
    num_rows: _Positive
    dimension: _Positive
    device_s: _Seconds
    """Without ``interrupted_s``."""
    nonfinite_rows: tuple[_Count, ...]
    num_interruptions: _Count = 0
    """Urgent passes that ran between two blocks of this one."""
    interrupted_s: _Seconds = 0.0
    """What they took together."""
    num_padding_tokens: _Count = 0
    memory: DeviceMemory | None = None


class Failed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Worker to gateway: the encoder raised. The exception's text stays in the worker's log."""

    pass_id: _Count
    error_type: str
    is_out_of_memory: bool
    memory: DeviceMemory | None = None


ToWorker = Load | Run | Stop
ToGateway = Stage | Ready | LoadFailed | Rows | Failed

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_gateway: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)


def pack_head(message: ToWorker | ToGateway, *, body_bytes: int = 0) -> bytes:
    """Prefix and header of a frame; ``body_bytes`` bytes of body must follow it."""
    header = _encoder.encode(message)
    _check_sizes(len(header), body_bytes)
    return _PREFIX.pack(_MARK, len(header), body_bytes) + header


def unpack_prefix(prefix: bytes | memoryview) -> tuple[int, int]:
    """Read how many bytes of header and of body follow the prefix.

    Raises:
        FrameError: It does not start with the mark, or announces more than is allowed.
    """
    mark, header_bytes, body_bytes = _PREFIX.unpack(prefix)
    if mark != _MARK:
        raise FrameError(f"a frame starts with {_MARK!r}, this one with {mark!r}")
    _check_sizes(header_bytes, body_bytes)
    return header_bytes, body_bytes


def unpack_for_worker(header: memoryview) -> ToWorker:
    """Read a header that a gateway sent; raises ``FrameError``."""
    try:
        return _to_worker.decode(header)
    except msgspec.MsgspecError as error:
        raise FrameError(f"no message for a worker: {error}") from error


def unpack_for_gateway(header: memoryview) -> ToGateway:
    """Read a header that a worker sent; raises ``FrameError``."""
    try:
        return _to_gateway.decode(header)
    except msgspec.MsgspecError as error:
        raise FrameError(f"no message for a gateway: {error}") from error


def pack_run(
    pass_id: int, features: Sequence[Features], *, is_urgent: bool = False, may_interrupt: bool = False
) -> list[Buffer]:
    """Write a whole pass as one frame, in parts to be sent one after the other.

    Ids are copied into one part with the header: a small copy instead of a system call for each input.
    Pixels are not: each image is a part, and a view of its array.
    """
    ids = [np.ascontiguousarray(one.token_ids, dtype=np.int32) for one in features]
    pixels = [np.ascontiguousarray(image) for one in features for image in one.images]
    has_images = bool(pixels)
    run = Run(
        pass_id=pass_id,
        lengths=tuple(map(len, ids)),
        prompt_lengths=tuple(one.num_prompt_tokens for one in features),
        dropped_lengths=tuple(one.num_dropped_tokens for one in features),
        image_sizes=tuple(tuple(image.shape[:2] for image in one.images) for one in features)
        if has_images
        else (),
        image_lengths=tuple(one.num_image_tokens for one in features) if has_images else (),
        is_urgent=is_urgent,
        may_interrupt=may_interrupt,
    )
    head = pack_head(run, body_bytes=sum(array.nbytes for array in (*ids, *pixels)))
    return [b"".join((head, *(array.data for array in ids))), *(array.reshape(-1).data for array in pixels)]


def unpack_run(run: Run, body: memoryview) -> list[Features]:
    """Read the inputs of a pass; ids and pixels are views into ``body``.

    Raises:
        FrameError: The header's lengths do not fit each other or the body.
    """
    num_inputs = len(run.lengths)
    image_sizes = run.image_sizes or ((),) * num_inputs
    image_lengths = run.image_lengths or (0,) * num_inputs
    columns = (run.prompt_lengths, run.dropped_lengths, image_sizes, image_lengths)
    if any(len(column) != num_inputs for column in columns):
        raise FrameError(
            f"a pass of {num_inputs} inputs has {len(run.prompt_lengths)} prompt lengths, "
            f"{len(run.dropped_lengths)} dropped lengths, {len(image_sizes)} lists of image sizes "
            f"and {len(image_lengths)} image lengths"
        )
    id_bytes = 4 * sum(run.lengths)
    pixel_bytes = sum(3 * height * width for sizes in image_sizes for height, width in sizes)
    if id_bytes + pixel_bytes != len(body):
        raise FrameError(
            f"a pass of {sum(run.lengths)} tokens and {pixel_bytes} bytes of pixels has a body of "
            f"{len(body)} bytes"
        )
    ids = np.frombuffer(body[:id_bytes], dtype=np.int32)
    pixels = np.frombuffer(body[id_bytes:], dtype=np.uint8)
    id_ends = accumulate(run.lengths)
    image_offset = 0
    features: list[Features] = []
    for index, end in enumerate(id_ends):
        images: list[npt.NDArray[np.uint8]] = []
        for height, width in image_sizes[index]:
            num_bytes = 3 * height * width
            image = pixels[image_offset : image_offset + num_bytes]
            images.append(image.reshape(height, width, 3))
            image_offset += num_bytes
        features.append(
            Features(
                token_ids=ids[end - run.lengths[index] : end],
                images=tuple(images),
                num_image_tokens=image_lengths[index],
                num_prompt_tokens=run.prompt_lengths[index],
                num_dropped_tokens=run.dropped_lengths[index],
            )
        )
    return features


def unpack_rows(rows: Rows, body: memoryview) -> npt.NDArray[np.float32]:
    """Read the rows of an answer, ``[num_rows, dimension]``, a view of ``body``.

    Raises:
        FrameError: The header's shape does not fit the body, or a named row is not there.
    """
    if rows.num_rows * rows.dimension * 4 != len(body):
        raise FrameError(f"{rows.num_rows} rows of {rows.dimension} numbers came as {len(body)} bytes")
    if any(row >= rows.num_rows for row in rows.nonfinite_rows):
        raise FrameError(f"rows {rows.nonfinite_rows} of {rows.num_rows} are said to be not finite")
    return np.frombuffer(body, dtype=np.float32).reshape(rows.num_rows, rows.dimension)


def _check_sizes(header_bytes: int, body_bytes: int) -> None:
    if header_bytes > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {header_bytes} bytes; {MAX_HEADER_BYTES} are allowed")
    if body_bytes > MAX_BODY_BYTES:
        raise FrameError(f"a body of {body_bytes} bytes; {MAX_BODY_BYTES} are allowed")
