"""Every knob of the program, typed, with its unit, its bounds and its default.

One flat name serves in all three places: ``port`` in the TOML file, ``LANEWAY_PORT`` in the environment,
``--port`` on the command line; later ones win over earlier ones. The groups below exist for the code, which
is handed only the group that it needs.

A field's bounds stand at the field. They are checked where values are read (``sources.py``), because only
there it is known which file, variable or flag is to blame.
"""

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Annotated

from cyclopts import Group, Parameter

from app.addresses import is_public_address

_DAY_S = 86_400
_MINUTE_MS = 60_000
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_HTTP_URL = re.compile(r"https?://[^\s/?#]+(/[^\s?#]*)?")
_HOST = re.compile(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


def _between(low: float, high: float) -> Parameter:
    """Both ends are allowed. NaN is not between anything."""

    def check(_: object, value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"It must be between {low:,} and {high:,}.")

    return Parameter(validator=check)


def _at_least(low: int) -> Parameter:
    def check(_: object, value: int | tuple[int, ...] | None) -> None:
        values = value if isinstance(value, tuple) else (value,)
        if any(number is not None and number < low for number in values):
            raise ValueError(f"It must be {low} or more.")

    return Parameter(validator=check)


def _duration_s() -> Parameter:
    def check(_: object, value: float) -> None:
        if not (math.isfinite(value) and 0 < value <= _DAY_S):
            raise ValueError(f"It must be more than 0 and at most {_DAY_S:,} seconds.")

    return Parameter(validator=check)


def _optional(at_least: float, at_most: float) -> Parameter:
    def check(_: object, value: float | None) -> None:
        if value is not None and not at_least <= value <= at_most:
            raise ValueError(f"It must be between {at_least:,g} and {at_most:,g}.")

    return Parameter(validator=check)


def _text(pattern: re.Pattern[str], what: str) -> Parameter:
    def check(_: object, value: str | None) -> None:
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(f"It must be {what}.")

    return Parameter(validator=check)


def _choice(name: str) -> Parameter:
    # cyclopts shows and reads the members' names: lowered, they are the values, as every enum here has them.
    return Parameter(name=f"--{name}", name_transform=str.lower)


def _hosts() -> Parameter:
    def check(_: object, value: tuple[str, ...]) -> None:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f'"{host}" is no host; write images.example.org, images.example.org:8443, or '
                    ".example.org for all hosts below it."
                )
            if _is_inner(host):
                raise ValueError(
                    f'"{host}" is an inner address, and images are fetched from public ones only. Images of '
                    "your own network can be sent in requests, as data URIs."
                )

    return Parameter(validator=check, negative_iterable=(), show_default=False)


def _is_inner(host: str) -> bool:
    """Whether a host, with or without a port, is itself an address that no image may be fetched from."""
    name = host.partition(":")[0].lower()
    try:
        return not is_public_address(ip_address(name))
    except ValueError:
        # RFC 6761, 6.3: always loopback.
        return name == "localhost" or name.endswith(".localhost")


_SOME_TEXT = _text(re.compile(r".*\S.*"), "more than white space")


class TokenIds(StrEnum):
    """How an ``input`` that is a token array is understood."""

    CL100K_BASE = "cl100k_base"
    """Ids of OpenAI's embedding models, which LangChain sends by default: decoded to text."""
    MODEL = "model"
    """Ids of the served model's own vocabulary."""
    REJECT = "reject"
    """Refused with 400."""


class Truncate(StrEnum):
    """What happens to a text longer than the model reads, unless the request says otherwise."""

    NONE = "none"
    START = "start"
    END = "end"


class Dtype(StrEnum):
    """What the model computes in."""

    AUTO = "auto"
    """float32 on CPU; on CUDA float16, or bfloat16 for models that overflow in float16."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class MediaUrls(StrEnum):
    """Where images may be fetched from."""

    PUBLIC = "public"
    """Any address of the public internet, on the ports of http and https."""
    ALLOWLIST = "allowlist"
    """Hosts that ``media_hosts`` names, as far as their addresses are public."""
    OFF = "off"
    """Nowhere: images come with the request."""


class Rope(StrEnum):
    """How positions are numbered, in models that could number them either way."""

    SEQUENTIAL = "sequential"
    """Token after token, as GME's authors compute."""
    MROPE = "mrope"
    """Images by row and column, as ms-swift trains and vLLM computes."""


class Quantize(StrEnum):
    """What weights are stored in."""

    INT8 = "int8"


class ImageOrientation(StrEnum):
    """Which way up an image is taken."""

    EXIF = "exif"
    """As its EXIF tag says."""
    STORED = "stored"
    """As its pixels are stored."""


class ImageAlpha(StrEnum):
    """What stands behind transparent pixels."""

    WHITE = "white"
    DROP = "drop"
    """The colours that are stored under the transparency."""


class LogLevel(StrEnum):
    """The least important lines that are still written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    """Human lines on a terminal, JSON elsewhere."""
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The socket and its limits."""

    host: Annotated[str, _SOME_TEXT] = "127.0.0.1"
    """Address to listen on. ``0.0.0.0`` opens the server to the network."""
    port: Annotated[int, _between(0, 65_535)] = 8000
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: Annotated[int, _at_least(1)] = 64 * 1024 * 1024
    """Largest request body that is read."""
    header_timeout_s: Annotated[float, _duration_s()] = 10.0
    """A client must have sent its whole request head by then."""
    body_timeout_s: Annotated[float, _duration_s()] = 60.0
    """A client must have sent its whole body by then, counted from the end of the head."""
    keep_alive_timeout_s: Annotated[float, _duration_s()] = 75.0
    """An idle connection is closed after this."""
    shutdown_timeout_s: Annotated[float, _duration_s()] = 30.0
    """Requests in flight get this long to finish when the server is told to stop."""
    log_level: Annotated[LogLevel, _choice("log-level")] = LogLevel.INFO
    """``debug``, ``info``, ``warning`` or ``error``."""
    log_format: Annotated[LogFormat, _choice("log-format")] = LogFormat.AUTO
    """``text``, ``json``, or ``auto``: text on a terminal, JSON elsewhere."""
    log_file: Annotated[str | None, _SOME_TEXT] = None
    """File to write log lines to. Default: standard error. ``auto`` is JSON there."""
    log_file_bytes: Annotated[int, _at_least(0)] = 0
    """Begin another log file before this one would be larger. 0: never for its size."""
    log_file_hours: Annotated[float, _between(0, 8_784)] = 0.0
    """Begin another log file with every so many hours, 24 at midnight UTC. 0: never for its age."""
    log_files_kept: Annotated[int, _between(1, 10_000)] = 7
    """Log files with earlier lines that are kept; the oldest goes first."""
    otlp_endpoint: Annotated[
        str | None, _text(_HTTP_URL, "the URL of a collector, such as http://127.0.0.1:4318")
    ] = None
    """Send traces to this OpenTelemetry collector. Default: what ``OTEL_EXPORTER_OTLP_ENDPOINT`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model is served, and how."""

    model: Annotated[str, _SOME_TEXT] = "minilm"
    """``minilm`` (embedded), ``tiny-gme`` (random), a folder, a Hugging Face id or ``modelscope:ID``."""
    served_name: Annotated[str | None, _SOME_TEXT] = None
    """Name clients use. Default: the model's own."""
    revision: Annotated[str | None, _SOME_TEXT] = None
    """Branch, tag or commit of a hub model. Default: the hub's main branch."""
    openai_aliases: bool = True
    """Answer to OpenAI's three embedding model names, too."""
    device: Annotated[str, _text(_DEVICE, '"auto", "cpu", "cuda", or "cuda:" and a number')] = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``, ..."""
    dtype: Annotated[Dtype, _choice("dtype")] = Dtype.AUTO
    """``float32``, ``bfloat16``, ``float16``; ``auto``: float32 on CPU, else float16 where that is safe."""
    quantize: Annotated[Quantize | None, _choice("quantize")] = None
    """``int8``: linear layers of the text part in 8 bits, for less memory. Vectors differ a little."""
    family: Annotated[str | None, _SOME_TEXT] = None
    """Reads the checkpoint as one of this family, such as ``gme``. Default: the family that recognises it."""
    rope: Annotated[Rope, _choice("rope")] = Rope.SEQUENTIAL
    """Positions of image tokens: ``sequential``, as GME's authors, or ``mrope``, as ms-swift and vLLM."""
    workers: Annotated[int, _between(0, 1_024)] = 0
    """Worker processes. 0: on CUDA one a GPU; on CPU one a core, or one in all for weights over 1 GiB. Fewer
    than that have several threads each, which stall when something else wants a core."""
    max_tokens: Annotated[int | None, _at_least(1)] = None
    """Tokens read of an input. Default: the model's limit. It can be lowered; GME's 1,800 raised, too."""
    dimensions: Annotated[
        tuple[int, ...], _at_least(1), Parameter(negative_iterable=(), show_default=False)
    ] = ()
    """Shorter vector sizes that the model was trained for (Matryoshka), for models that do not say so."""
    truncate: Annotated[Truncate, _choice("truncate")] = Truncate.END
    """Too long texts: cut at the ``end``, at the ``start``, or refused (``none``)."""
    token_ids: Annotated[TokenIds, _choice("token-ids")] = TokenIds.CL100K_BASE
    """How token arrays are read: ``cl100k_base``, ``model``, or ``reject``."""
    cl100k_path: Annotated[str | None, _SOME_TEXT] = None
    """File with the cl100k_base vocabulary. Default: found where other packages keep it."""
    default_input_type: Annotated[str | None, _SOME_TEXT] = None
    """The prompt used when a request names none. Default: the model's own."""
    pass_timeout_s: Annotated[float, _duration_s()] = 120.0
    """A worker is killed after 50 times a pass's predicted time, at least 10 s, and at most this setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingSettings:
    """Who runs next, and how much at once."""

    enable_batching: bool = True
    """``false``: every input runs in a pass of its own."""
    max_batch_size: Annotated[int, _at_least(1)] = 512
    """Most inputs in one pass."""
    max_wait_ms: Annotated[float, _between(0, 60_000)] = 0.0
    """Documents wait up to this long for company when the device is idle. Queries never linger."""
    max_pass_ms: Annotated[float, _between(0, 60_000)] = 0.0
    """Longest pass with queries, in device time; one longer input runs alone. 0: 50 on CPU, 30 on CUDA."""
    max_document_pass_ms: Annotated[float, _between(0, 600_000)] = 0.0
    """Longest pass of documents that no query waits for. 0: 800 on CPU, 60 on CUDA."""
    fill_ms: Annotated[float | None, _optional(0, _MINUTE_MS)] = None
    """Passes with queries are filled with documents to this. Default: half max_pass_ms on CUDA, 0 on CPU."""
    query_slo_ms: Annotated[float, _between(1, 60_000)] = 100.0
    """When a query that names no deadline wants its answer: it orders queries and ends none."""
    interruption_share: Annotated[float | None, _optional(0, 0.9)] = None
    """Part of the device's time that passes of queries may waste while documents wait. The more is spent, the
    longer queries wait to share a pass; full passes do not wait. 0: none runs within a pass of documents.
    Default: 0.06 on CPU, 0.05 on CUDA."""
    max_pass_tokens: Annotated[int, _at_least(0)] = 0
    """Most tokens in one pass, however fast they are, for memory's sake. 0: 4096 on CPU, 16384 on CUDA."""
    document_share: Annotated[float, _between(0, 1)] = 0.15
    """Part of the device's time that waiting documents get whatever the queries do."""
    batch_share: Annotated[float, _between(0, 1)] = 0.05
    """The same for the batch lane."""
    max_query_queue: Annotated[int, _at_least(1)] = 2_048
    """Inputs that may wait in the query lane; more are answered 429."""
    max_document_queue: Annotated[int, _at_least(1)] = 16_384
    """Inputs that may wait in the document lane."""
    max_batch_queue: Annotated[int, _at_least(1)] = 65_536
    """Inputs that may wait in the batch lane."""
    max_query_queue_s: Annotated[float, _duration_s()] = 2.0
    """The query lane takes no more work than all devices do in this time, though always one request."""
    max_document_queue_s: Annotated[float, _duration_s()] = 60.0
    """The same for the document lane."""
    max_batch_queue_s: Annotated[float, _duration_s()] = 300.0
    """The same for the batch lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """What one request may hold, and all of them together."""

    max_inputs: Annotated[int, _at_least(1)] = 2_048
    """Inputs in one request, as OpenAI allows."""
    max_request_tokens: Annotated[int, _at_least(1)] = 300_000
    """Tokens of all inputs of one request together, before truncation."""
    max_input_chars: Annotated[int, _at_least(1)] = 1_000_000
    """Characters of one input; longer ones are refused before they are tokenised."""
    max_held_body_bytes: Annotated[int, _at_least(1)] = 256 * 1024 * 1024
    """Bodies of all requests together, until their answers; what finds no room waits. Small ones never do."""
    request_timeout_s: Annotated[float, _duration_s()] = 600.0
    """A request that states no deadline of its own gets this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaSettings:
    """Images: where they may come from, and how much of them is read."""

    media_urls: Annotated[MediaUrls, _choice("media-urls")] = MediaUrls.PUBLIC
    """Image URLs: of any ``public`` address, of an ``allowlist``, or ``off``. Never of an inner address."""
    media_hosts: Annotated[tuple[str, ...], _hosts()] = ()
    """The allowlist: ``cdn.example.org``, ``cdn.example.org:8443``, or ``.example.org`` for all below it."""
    max_images: Annotated[int, _at_least(1)] = 96
    """Images in one request."""
    max_image_bytes: Annotated[int, _at_least(1)] = 20 * 1024 * 1024
    """Largest image that is read, as a file."""
    max_request_image_bytes: Annotated[int, _at_least(1)] = 64 * 1024 * 1024
    """All images of one request together, as files. As base64, a body of 64 MiB holds 48 MiB of them."""
    max_held_image_bytes: Annotated[int, _at_least(1)] = 1024 * 1024 * 1024
    """Decoded base64 and pixels of all requests; what finds no room waits. Queries have a quarter more,
    and the batch lane has half of it at most."""
    fetch_timeout_s: Annotated[float, _duration_s()] = 10.0
    """An image must have arrived by then, redirects included."""
    request_fetch_timeout_s: Annotated[float, _duration_s()] = 240.0
    """All fetches of one request may take so long, added up."""
    max_fetches: Annotated[int, _at_least(1)] = 32
    """Images that are fetched at once, and as many for queries; one request has a quarter of them."""
    max_fetches_per_host: Annotated[int, _at_least(1)] = 4
    """Of these, from one host, and as many for queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """How images become what the model reads. The first four change vectors, and so the fingerprint."""

    min_image_tokens: Annotated[int | None, _at_least(1)] = None
    """Smaller images are scaled up to so many tokens. Default: the model's own bound, 256 for GME."""
    max_image_tokens: Annotated[int | None, _at_least(1)] = None
    """Larger images are scaled down to so many tokens. Default: the model's own bound, 1,280 for GME."""
    image_orientation: Annotated[ImageOrientation, _choice("image-orientation")] = ImageOrientation.EXIF
    """Photos are turned as their ``exif`` tag says, or taken as ``stored``."""
    image_alpha: Annotated[ImageAlpha, _choice("image-alpha")] = ImageAlpha.WHITE
    """Transparent images are laid on ``white``, or ``drop`` their transparency."""
    max_image_pixels: Annotated[int, _at_least(1)] = 40_000_000
    """Largest image that is decoded, in pixels."""
    decode_timeout_s: Annotated[float, _duration_s()] = 10.0
    """An image that takes longer to decode is refused."""
    decode_workers: Annotated[int, _between(0, 1_024)] = 0
    """Processes that decode images; the first is for queries alone. 0: one more than half of the cores."""


def _order_the_bounds(_: object, images: ImageSettings) -> None:
    least, most = images.min_image_tokens, images.max_image_tokens
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_image_tokens ({least}) is more than max_image_tokens ({most}).")


def _name_hosts_where_they_count(_: object, media: MediaSettings) -> None:
    if media.media_urls is MediaUrls.ALLOWLIST and not media.media_hosts:
        raise ValueError("media_urls is allowlist, but media_hosts names no host.")
    if media.media_hosts and media.media_urls is not MediaUrls.ALLOWLIST:
        raise ValueError(f"media_hosts counts only where media_urls is allowlist, not {media.media_urls}.")


def _order_the_passes(_: object, batching: BatchingSettings) -> None:
    _leave_queries_time(_, batching)
    fill_ms, pass_ms, document_ms = batching.fill_ms, batching.max_pass_ms, batching.max_document_pass_ms
    if pass_ms and fill_ms is not None and fill_ms > pass_ms:
        raise ValueError(f"fill_ms ({fill_ms:g}) is more than max_pass_ms ({pass_ms:g}).")
    if pass_ms and document_ms and document_ms < pass_ms:
        raise ValueError(f"max_document_pass_ms ({document_ms:g}) is less than max_pass_ms ({pass_ms:g}).")


def _leave_queries_time(_: object, batching: BatchingSettings) -> None:
    reserved = batching.document_share + batching.batch_share
    if reserved >= 1:
        raise ValueError(
            f"document_share ({batching.document_share:g}) and batch_share ({batching.batch_share:g}) "
            "must stay below 1 together, or no time is left for queries."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration, read once at start."""

    server: Annotated[ServerSettings, Parameter(name="*", group=Group("Server", sort_key=1))] = field(
        default_factory=ServerSettings
    )
    model: Annotated[ModelSettings, Parameter(name="*", group=Group("Model", sort_key=2))] = field(
        default_factory=ModelSettings
    )
    batching: Annotated[
        BatchingSettings,
        Parameter(name="*", group=Group("Batching", sort_key=3), validator=_order_the_passes),
    ] = field(default_factory=BatchingSettings)
    limits: Annotated[LimitSettings, Parameter(name="*", group=Group("Limits", sort_key=4))] = field(
        default_factory=LimitSettings
    )
    media: Annotated[
        MediaSettings,
        Parameter(name="*", group=Group("Media", sort_key=5), validator=_name_hosts_where_they_count),
    ] = field(default_factory=MediaSettings)
    images: Annotated[
        ImageSettings, Parameter(name="*", group=Group("Images", sort_key=6), validator=_order_the_bounds)
    ] = field(default_factory=ImageSettings)
