"""What clients send and get, byte for byte.

Law: structs only, named as in OpenAI's OpenAPI document where it names them; no rule that one of them obeys
is checked here that its type cannot express. Top-level keys that are not listed are ignored (and reported);
inside an item they are refused, because an image that is dropped in silence is the worst failure there is.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct


def _shown_as(**schema: Any) -> Meta:
    """What the OpenAPI document says of a field whose Python type says too little or too much."""
    return Meta(extra_json_schema={"extra": schema})


NUMBERS = {"type": "array", "items": {"type": "number", "format": "float"}}
"""An array of numbers, in the OpenAPI document."""
_RED_SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8ISfHgA0wMeAAg1MCANDK"
    "ARQfGKMRAAAAAElFTkSuQmCC"
)
"""A whole PNG, for examples that work as they are."""
_BASE64 = {"type": "string", "description": "Little-endian float32 values in base64."}


# What is to be embedded ------------------------------------------------------------------------------------


class TextPart(Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    """A content part with text."""

    text: str


class ImageURL(Struct, forbid_unknown_fields=True, frozen=True):
    """Where an image is, in the form of OpenAI's chat messages."""

    url: str
    detail: str | None = None


class ImageURLPart(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True, frozen=True):
    """A content part with an image; the plain string is Voyage's and Volcengine's spelling."""

    image_url: str | ImageURL


class ImageBase64Part(Struct, tag_field="type", tag="image_base64", forbid_unknown_fields=True, frozen=True):
    """A content part with an image, as Voyage spells it."""

    image_base64: str


class ImagePart(Struct, tag_field="type", tag="image", forbid_unknown_fields=True, frozen=True):
    """A content part with an image, as Qwen's processors spell it."""

    image: str


class InputImagePart(Struct, tag_field="type", tag="input_image", forbid_unknown_fields=True, frozen=True):
    """A content part with an image, as OpenAI's Responses API spells it."""

    image_url: str


Part = TextPart | ImageURLPart | ImageBase64Part | ImagePart | InputImagePart


class Item(Struct, forbid_unknown_fields=True, frozen=True):
    """One thing to embed: ``content``, or ``text`` and ``image``, with settings of its own."""

    content: Annotated[
        str | list[Part] | None,
        Meta(
            description="A string, read like one in `input`, or content parts. Parts make one vector "
            "together: image first, then their texts, a line each, in whatever order they are sent."
        ),
        _shown_as(
            examples=[
                [
                    {"type": "text", "text": "A red square."},
                    {"type": "image_url", "image_url": {"url": _RED_SQUARE}},
                ]
            ]
        ),
    ] = None
    text: Annotated[
        str | None, Meta(description="A text, whatever it looks like. In place of `content`.")
    ] = None
    image: Annotated[
        str | None,
        Meta(
            description="An image: an http or https URL, a data URI, or base64. In place of `content`; with "
            "`text` beside it both make one vector, image first. Models that read text only answer 400."
        ),
        _shown_as(examples=[_RED_SQUARE]),
    ] = None
    instruction: Annotated[
        str | None, Meta(description="As in the request, for this item alone; it goes before the request's.")
    ] = None
    input_type: Annotated[
        str | None, Meta(description="As in the request, for this item alone; it goes before the request's.")
    ] = None


class Message(Struct, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation, as in OpenAI's chat messages."""

    role: Annotated[
        str,
        Meta(
            description="`user`: what is embedded, once in a conversation. `system` or `developer`: the "
            "instruction, before it. `assistant`: only at the end, without text, as vLLM's clients send it."
        ),
    ]
    content: Annotated[
        str | list[Part],
        Meta(description="A string or content parts, as in an item. An instruction is text only."),
    ]


Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""64 bits are enough for whatever is counted here; JSON's integers have no bound, and arithmetic has."""

# msgspec takes one array type a union (0.22), so an element list is loose here and sorted out in inputs.py:
# a token array is `list[int]`, a fused input is `list[Part]`.
Element = str | Integer | Item | list[Integer | Part]
Input = str | Item | list[Element]
Messages = list[Message | list[Message]]
"""One conversation, or several."""


# Requests --------------------------------------------------------------------------------------------------


class CreateEmbeddingRequest(Struct, frozen=True):
    """The body of ``POST /v1/embeddings``: OpenAI's five fields, and extensions of other servers."""

    required_params: ClassVar[tuple[str, ...]] = ("model",)
    """What the OpenAPI document calls required. Of ``input`` and ``messages``, one is."""

    model: Annotated[
        str,
        Meta(
            description="Name of the served model, or one of its aliases, as `GET /v1/models` lists them. "
            "`NAME-query` and `NAME-document` set `input_type` as well."
        ),
        _shown_as(examples=["text-embedding-3-small"]),
    ]
    input: Annotated[
        Input | msgspec.UnsetType,
        Meta(
            description="What to embed: a text, a list of texts, a token array, a list of token arrays, or "
            "items with settings of their own; a list may mix them. Each text, token array or item gives one "
            "vector, and so does a list of content parts inside the list. For models that read images, a "
            "string that begins as an image's data URI is that image, unless `modality` says `text`. "
            "Chat messages may stand here, too, as in `messages`."
        ),
        _shown_as(
            examples=[
                ["Where does the river end?", "The river ends in a lake north of the town."],
                [
                    {"text": "A red square.", "image": _RED_SQUARE},
                    {"image": _RED_SQUARE},
                ],
            ]
        ),
    ] = msgspec.UNSET
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Meta(description="How vectors are written: `float` (default), or `base64` of little-endian float32."),
    ] = None
    # With `int` alone msgspec takes 5.0 for 5; the float arm is refused in inputs.py.
    dimensions: Annotated[
        Integer | float | None,
        Meta(
            description="Size of the vectors, one of the sizes that the model's card lists. Default: the "
            "model's own."
        ),
        _shown_as(oneOf=None, type=["integer", "null"], minimum=1),
    ] = None
    user: Annotated[str | None, Meta(description="Accepted for OpenAI's clients; changes nothing.")] = None

    input_type: Annotated[
        str | None,
        Meta(
            description="`query` or `document`, or the name of one of the model's prompts: which prompt "
            "is put before each input. Other vendors' names, such as `search_query`, mean the same."
        ),
    ] = None
    task: Annotated[str | None, Meta(description="Another name of `input_type` (Jina).")] = None
    prompt_name: Annotated[
        str | None, Meta(description="Another name of `input_type` (sentence-transformers).")
    ] = None
    instruction: Annotated[
        str | None,
        Meta(
            description="An instruction for every input, in place of the model's prompt. Empty: no prompt. "
            "Models that were trained with instructions on queries only do not read it for documents; then "
            "it is named in the header `x-ignored-params`."
        ),
        _shown_as(examples=["Find an image that matches the given text."]),
    ] = None
    modality: Annotated[
        str | list[str] | None,
        Meta(
            description="How strings are to be read, one word for all or one for each input. `text`: as "
            "texts, also those that look like an image's data URI. `image`: as images, each a URL, a data "
            "URI or base64. `text_image`: as a text and, at its end, an image's data URI (NVIDIA NIM); both "
            "make one vector. Default: what begins as an image's data URI is one, all else a text, URLs too. "
            "Models that read text only take `text` only."
        ),
        _shown_as(examples=["image"]),
    ] = None
    priority: Annotated[
        Integer | str | None,
        Meta(
            description="The lane to wait in: `query`, `document` or `batch`, or a number, lower is sooner "
            "(below 0 query, 1 to 9 document, from 10 batch). Default, and 0: by `input_type`, else by the "
            "number of inputs. It never changes a vector."
        ),
    ] = None
    truncate: Annotated[
        bool | str | None,
        Meta(
            description="What to do with inputs that are too long: `NONE` refuses them, `START` and `END` "
            "cut there; `true` cuts, `false` refuses. Default: the server's setting."
        ),
    ] = None
    truncation: Annotated[bool | str | None, Meta(description="Another name of `truncate`.")] = None
    truncate_prompt_tokens: Annotated[
        Integer | None,
        Meta(description="Cut inputs to so many tokens, special ones included; `-1`: to the model's limit."),
    ] = None
    normalize: Annotated[
        bool | None,
        Meta(description="Whether vectors are scaled to length 1. Default: `true`."),
    ] = None
    normalized: Annotated[bool | None, Meta(description="Another name of `normalize`.")] = None
    timeout_ms: Annotated[
        Integer | float | None,
        Meta(
            description="Milliseconds that the answer is worth waiting for; then 408. Default: the read "
            "timeout that the SDK announces, else the server's setting."
        ),
    ] = None
    token_encoding: Annotated[
        str | None,
        Meta(
            description="The vocabulary of token arrays: `cl100k_base` (they become text again), `model` "
            "(they are taken as they are) or `reject`. Default: the server's setting."
        ),
    ] = None
    embedding_type: Annotated[
        str | list[str] | None, Meta(description="Only `float`; for base64 set `encoding_format`.")
    ] = None
    output_dimension: Annotated[
        Integer | float | None,
        Meta(description="Another name of `dimensions` (Voyage, Cohere)."),
        _shown_as(oneOf=None, type=["integer", "null"], minimum=1),
    ] = None
    output_dtype: Annotated[
        str | None, Meta(description="Only `float`; for base64 set `encoding_format`.")
    ] = None
    messages: Annotated[
        Messages | msgspec.UnsetType | None,
        Meta(
            description="In place of `input`: a conversation, which gives one vector, or a list of "
            "conversations, which gives one each (vLLM). The content of its one `user` message is what is "
            "embedded; the text of a `system` message before it is the instruction."
        ),
        _shown_as(
            examples=[
                [
                    {"role": "system", "content": "Find an image that matches the given text."},
                    {"role": "user", "content": [{"type": "text", "text": "A red square."}]},
                ]
            ]
        ),
    ] = msgspec.UNSET


class ConversationRequest(CreateEmbeddingRequest, frozen=True, kw_only=True):
    """The same body where ``input`` holds chat messages, as vLLM takes them there.

    A type of its own, because messages do not fit into one union with items: neither has a tag.
    """

    input: Messages  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues] - above


# Answers ---------------------------------------------------------------------------------------------------


class Embedding(Struct, frozen=True, kw_only=True):
    """One vector of an answer."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[msgspec.Raw, _shown_as(oneOf=[NUMBERS, _BASE64])]
    """Spliced in as it is: a JSON array of float32 numbers, or a string of base64."""


class PromptTokensDetails(Struct, frozen=True):
    """What the prompt tokens were spent on."""

    text_tokens: int
    image_tokens: int = 0
    image_count: int = 0


class Usage(Struct, frozen=True):
    """Tokens that the model computed, special tokens and prompt included."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CreateEmbeddingResponse(Struct, frozen=True, kw_only=True):
    """The answer of ``POST /v1/embeddings``; ``data`` is in input order."""

    object: Literal["list"] = "list"
    id: str
    model: str
    data: list[Embedding]
    usage: Usage


class TextsResponse(Struct, frozen=True):
    """The answer of ``POST /embeddings/text``."""

    embeddings: Annotated[list[msgspec.Raw], _shown_as(items=NUMBERS)]
    dimension: int


class SimilarityResponse(Struct, frozen=True):
    """The answer of ``POST /similarity``: cosines, row by row."""

    similarity_matrix: Annotated[list[msgspec.Raw], _shown_as(items=NUMBERS)]
    shape: tuple[int, int]


class Limits(Struct, frozen=True):
    """What one request may hold."""

    max_inputs: int
    max_request_tokens: int
    max_input_chars: int
    max_body_bytes: int


class Images(Struct, frozen=True, kw_only=True):
    """What the served model reads of images, and what one request may hold of them."""

    max_per_input: int
    fused: bool
    """An image and a text in one input make one vector together."""
    part_order: Literal["image_first"] = "image_first"
    """The model reads images before the text, in whatever order they are sent."""
    min_tokens: int
    """What the smallest image costs."""
    max_tokens: int
    """What the largest one costs: larger ones are scaled down."""
    formats: tuple[str, ...]
    """Of animated ones the first picture is read."""
    urls: str
    """Where image URLs may lead: ``public``, ``allowlist`` or ``off``."""
    max_per_request: int
    max_bytes: int
    """Of one file."""
    max_request_bytes: int
    """Of all files of one request together."""
    max_pixels: int
    """Of one image. WebP and progressive JPEG take more memory for each pixel, and may have fewer: some 17
    and 28 million."""
    min_side: int
    """Pixels of its shorter side."""
    max_side: int
    """Pixels of its longer side."""
    max_aspect_ratio: float
    """The longer side over the shorter one."""


class Model(Struct, frozen=True, kw_only=True):
    """A served model: OpenAI's four fields, and what a client may want to know of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    embedding_dim: int
    dimensions: tuple[int, ...]
    """Every size that ``dimensions`` may ask for, the native one first."""
    max_input_tokens: int
    input_modalities: tuple[str, ...]
    aliases: tuple[str, ...]
    prompts: dict[str, str]
    default_prompt_name: str | None
    is_normalized: bool
    fingerprint: str
    """Equal fingerprints: vectors may be compared."""
    source: str
    architecture: str
    dtype: str
    is_packed: bool
    packing_note: str
    """What the probe at load found; where passes are padded, why."""
    license: str | None
    note: str | None
    """What whoever uses the vectors has to know."""
    limits: Limits
    images: Images | None
    """``None``: the model reads texts only."""
    capabilities: tuple[str, ...] = ("embeddings",)


class ListModels(Struct, frozen=True, kw_only=True):
    """The answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class Error(Struct, frozen=True):
    """What went wrong. All four keys are always there, as OpenAI's ``Error`` requires."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Struct, frozen=True):
    """The one shape of every failure."""

    error: Error


class Readiness(Struct, frozen=True):
    """The answer of ``GET /health/ready`` while requests are answered."""

    status: Literal["ready"]
    stage: str


class Unreadiness(Struct, frozen=True):
    """The answer of ``GET /health/ready`` while they are not: for probes, and for clients of the envelope."""

    status: Literal["unavailable"]
    stage: str
    error: Error
