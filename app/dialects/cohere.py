"""Cohere's ``POST /v2/embed`` (docs.cohere.com/reference/embed; checked against cohere 7.3)."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
from msgspec import Meta, Struct

from app.dialects.translation import Names, Translation
from app.engine import Embeddings
from app.errors import InvalidRequestError, quoted
from app.outputs import BASE64_BYTES, FLOAT_TEXT_BYTES, base64_texts, encoded, finish_rows, float_texts
from app.prompts import NEUTRAL, Side, allowed_names, side_of
from app.wire import NUMBERS, CreateEmbeddingRequest, Error, Input, Integer, Item

# N rows, D dimension of an answer, B = D / 8 bytes of its signs


# Request ---------------------------------------------------------------------------------------------------


class CohereEmbedRequest(Struct, frozen=True):
    """The body of ``POST /v2/embed``."""

    required_params: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[str, Meta(description="As in `/v1/embeddings`: the served model or one of its aliases.")]
    texts: Annotated[
        list[str] | None,
        Meta(
            description="Texts. Exactly one of `texts`, `images` and `inputs`; up to the server's own limit."
        ),
    ] = None
    images: Annotated[
        list[str] | None,
        Meta(description="Images: data URIs, raw base64, or http(s) URLs where the server fetches them."),
    ] = None
    inputs: Annotated[
        list[Item] | None,
        Meta(description="Inputs of content parts, `text` and `image_url`; one vector for all its parts."),
    ] = None
    input_type: Annotated[
        str | None,
        Meta(
            description="`search_query` or `search_document`: the model's prompt for that side. "
            "`classification` and `clustering`: its prompt of that name, or its default. `image`: as "
            "`search_document`."
        ),
    ] = None
    embedding_types: Annotated[
        list[str] | None,
        Meta(description="`float` (default), `base64`, `binary`, `ubinary`: one or more, all are answered."),
    ] = None
    output_dimension: Annotated[
        Integer | None, Meta(description="Size of the vectors, one of those that the model's card lists.")
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        Meta(description="Where an input that is too long is cut; `NONE` refuses it. Default: `END`."),
    ] = None
    max_tokens: Annotated[
        Integer | None, Meta(description="Read at most so many tokens of an input, special ones included.")
    ] = None
    priority: Annotated[
        Integer | None,
        Meta(
            description="Lower is sooner, 0 the default, as in `/v1/embeddings`. It never changes a vector."
        ),
    ] = None


KINDS = ("texts", "images", "inputs")


def translate(data: CohereEmbedRequest, *, prompts: Mapping[str, str]) -> Translation:
    """Say it in our words.

    Args:
        data: The body.
        prompts: The model's, by name.

    Raises:
        InvalidRequestError: Not exactly one kind of input is there.
    """
    given, kind = _inputs(data)
    return Translation(
        request=CreateEmbeddingRequest(
            model=data.model,
            input=given,
            # A text that looks like a data URI is a text here: images have a field of their own.
            modality={"texts": "text", "images": "image", "inputs": None}[kind],
            input_type=_input_type(data.input_type, prompts=prompts),
            output_dimension=data.output_dimension,
            truncate=data.truncate or "END",
            truncate_prompt_tokens=data.max_tokens,
            priority=data.priority,
        ),
        names=Names(
            inputs=kind,
            # Of a modality it is the images that a model cannot read.
            fields={"truncate_prompt_tokens": "max_tokens", "modality": kind},
        ),
    )


def _inputs(data: CohereEmbedRequest) -> tuple[Input, str]:
    """What is to be embedded, and the name of the field that holds it."""
    given: dict[str, Input] = {
        kind: [*inputs]
        for kind, inputs in zip(KINDS, (data.texts, data.images, data.inputs), strict=True)
        if inputs is not None
    }
    if len(given) != 1:
        what = " and ".join(map(repr, given)) if given else "none of them"
        raise InvalidRequestError(
            f"Send exactly one of 'texts', 'images' and 'inputs', not {what}.", param=list(given or KINDS)[-1]
        )
    [(kind, inputs)] = given.items()
    return inputs, kind


INPUT_TYPES = ("search_query", "search_document", "classification", "clustering", "image")
"""As Cohere's API lists them."""


def _input_type(name: str | None, *, prompts: Mapping[str, str]) -> str | None:
    """Cohere's input types that are not two sides of a search, in the served model's terms.

    Raises:
        InvalidRequestError: The name means nothing here; the message lists what does, Cohere's own first.
    """
    if name is None or name in prompts or side_of(name) or name == NEUTRAL:
        return name
    match name:
        case "classification" | "clustering":
            return NEUTRAL
        case "image":
            return Side.DOCUMENT
        case _:
            allowed = dict.fromkeys((*INPUT_TYPES, *allowed_names(prompts)))
            raise InvalidRequestError(
                f"{quoted(name)} is not an input type of this model. Allowed: {', '.join(allowed)}.",
                param="input_type",
                code="invalid_input_type",
            )


# Embedding types -------------------------------------------------------------------------------------------

Encoded = Callable[[npt.NDArray[np.float32]], list[msgspec.Raw]]


def binary_texts(rows_ND: npt.NDArray[np.float32]) -> list[msgspec.Raw]:
    """``ubinary`` less 128 in every byte, so that it is a signed one: JSON arrays of -128 to 127."""
    return _integer_texts((_signs(rows_ND) ^ 0x80).view(np.int8))


def ubinary_texts(rows_ND: npt.NDArray[np.float32]) -> list[msgspec.Raw]:
    """Every row's signs, eight a byte, the first in the highest bit: JSON arrays of 0 to 255."""
    return _integer_texts(_signs(rows_ND))


def _signs(rows_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    # Zero counts as negative, as in sentence-transformers' quantize_embeddings.
    return np.packbits(rows_ND > 0, axis=1)


def _integer_texts(bytes_NB: npt.NDArray[np.uint8] | npt.NDArray[np.int8]) -> list[msgspec.Raw]:
    return [msgspec.Raw(orjson.dumps(row_B, option=orjson.OPT_SERIALIZE_NUMPY)) for row_B in bytes_NB]


ENCODINGS: Mapping[str, Encoded] = {
    "float": float_texts,
    "base64": base64_texts,
    "binary": binary_texts,
    "ubinary": ubinary_texts,
}

# On the wire, for one number of the vector.
_BINARY_BYTES = 5 / 8
_ENCODED_BYTES = {"float": FLOAT_TEXT_BYTES, "base64": BASE64_BYTES}


def embedding_types(data: CohereEmbedRequest, *, dimension: int) -> tuple[str, ...]:
    """The types that are asked for, each once.

    Args:
        data: The body.
        dimension: Of the model's vectors.

    Raises:
        InvalidRequestError: One is not served, or does not fit the size of the vectors.
    """
    types = tuple(dict.fromkeys(data.embedding_types or ("float",)))
    for name in types:
        if name not in ENCODINGS:
            # Cohere's scales for int8 are part of its models; ours have none, and guessed ones cost recall.
            raise InvalidRequestError(
                f"{quoted(name)} is not an embedding type here. Allowed: {', '.join(ENCODINGS)}.",
                param="embedding_types",
            )
    num_values = data.output_dimension or dimension
    if num_values % 8 and not {"binary", "ubinary"}.isdisjoint(types):
        raise InvalidRequestError(
            f"Binary types pack 8 numbers in a byte; vectors of {num_values} cannot be packed.",
            param="embedding_types",
        )
    return types


# Answer ----------------------------------------------------------------------------------------------------


def _rows_of(**items: object) -> Meta:
    """How a list of encoded rows is shown in the OpenAPI document."""
    return Meta(extra_json_schema={"extra": {"items": items}})


_INTEGERS = {"type": "array", "items": {"type": "integer"}}


class CohereEmbeddings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Vectors by type, each list in input order; types that were not asked for are absent."""

    floats: Annotated[list[msgspec.Raw] | msgspec.UnsetType, _rows_of(**NUMBERS)] = msgspec.field(
        default=msgspec.UNSET, name="float"
    )
    base64: Annotated[list[msgspec.Raw] | msgspec.UnsetType, _rows_of(type="string")] = msgspec.UNSET
    binary: Annotated[list[msgspec.Raw] | msgspec.UnsetType, _rows_of(**_INTEGERS)] = msgspec.UNSET
    ubinary: Annotated[list[msgspec.Raw] | msgspec.UnsetType, _rows_of(**_INTEGERS)] = msgspec.UNSET


class CohereApiVersion(Struct, frozen=True):
    """Which of Cohere's APIs this is."""

    version: Literal["2"] = "2"


class CohereBilledUnits(Struct, frozen=True, kw_only=True):
    """What was computed; nobody is billed."""

    input_tokens: int
    """All of them, special tokens and prompts included."""
    text_tokens: int
    image_tokens: int
    images: int


class CohereMeta(Struct, frozen=True):
    """What is said beside the vectors."""

    billed_units: CohereBilledUnits
    api_version: CohereApiVersion = CohereApiVersion()


class CohereEmbedResponse(Struct, frozen=True, kw_only=True):
    """The answer of ``POST /v2/embed``."""

    id: str
    embeddings: CohereEmbeddings
    texts: list[str] | msgspec.UnsetType = msgspec.UNSET
    """The request's, where it had such."""
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


class CohereErrorResponse(Struct, frozen=True):
    """A failure: ``message`` where Cohere's clients look for it, beside the envelope of every endpoint."""

    message: str
    error: Error


async def answer(
    embeddings: Embeddings,
    *,
    dimensions: int | None,
    normalize: bool,
    types: Sequence[str],
    texts: Sequence[str] | None,
) -> bytes:
    """The body of ``POST /v2/embed``."""
    num_tokens, num_image_tokens = sum(embeddings.num_tokens), sum(embeddings.num_image_tokens)
    units = CohereBilledUnits(
        input_tokens=num_tokens,
        text_tokens=num_tokens - num_image_tokens,
        image_tokens=num_image_tokens,
        images=embeddings.num_images,
    )
    answer_id = f"embd-{secrets.token_hex(12)}"

    def build() -> CohereEmbedResponse:
        rows_ND = finish_rows(embeddings.rows, dimensions=dimensions, normalize=normalize)
        encodings = {name: ENCODINGS[name](rows_ND) for name in types}
        return CohereEmbedResponse(
            id=answer_id,
            embeddings=CohereEmbeddings(
                floats=encodings.get("float", msgspec.UNSET),
                base64=encodings.get("base64", msgspec.UNSET),
                binary=encodings.get("binary", msgspec.UNSET),
                ubinary=encodings.get("ubinary", msgspec.UNSET),
            ),
            texts=msgspec.UNSET if texts is None else [*texts],
            meta=CohereMeta(units),
        )

    num_values = len(embeddings.rows) * (dimensions or embeddings.rows.shape[1])
    value_bytes = sum(_ENCODED_BYTES.get(name, _BINARY_BYTES) for name in types)
    return await encoded(build, num_bytes=num_values * value_bytes + sum(map(len, texts or ())))
