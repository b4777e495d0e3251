"""Voyage's ``POST /v1/multimodalembeddings`` (docs.voyageai.com; checked against voyageai 0.5)."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from app.dialects.translation import Names, Translation
from app.engine import Embeddings
from app.outputs import BASE64_BYTES, FLOAT_TEXT_BYTES, base64_texts, encoded, finish_rows, float_texts
from app.wire import CreateEmbeddingRequest, Embedding, Error, Integer, Item
from model import ModelInfo

Encoding = Literal["float", "base64"]


class VoyageMultimodalRequest(Struct, frozen=True):
    """The body of ``POST /v1/multimodalembeddings``."""

    required_params: ClassVar[tuple[str, ...]] = ("inputs", "model")

    inputs: Annotated[
        list[Item],
        Meta(
            description="Inputs of content parts: `text`, `image_url` (where the server fetches such) and "
            "`image_base64` (a data URI). One vector for all parts of an input."
        ),
    ]
    model: Annotated[str, Meta(description="As in `/v1/embeddings`: the served model or one of its aliases.")]
    input_type: Annotated[
        str | None,
        Meta(description="`query` or `document`: the model's prompt for that side. Default: neither."),
    ] = None
    truncation: Annotated[
        bool | None,
        Meta(description="Whether an input that is too long is cut, or refused. Default: `true`."),
    ] = None
    output_encoding: Annotated[
        Encoding | None,
        Meta(description="`base64` of little-endian float32, else arrays of numbers."),
    ] = None
    encoding_format: Annotated[
        Encoding | None, Meta(description="What Voyage's SDK sends for `output_encoding`.")
    ] = None
    output_dimension: Annotated[
        Integer | None, Meta(description="Size of the vectors, one of those that the model's card lists.")
    ] = None
    output_dtype: Annotated[str | None, Meta(description="Only `float`.")] = None


def translate(data: VoyageMultimodalRequest) -> Translation:
    """Say it in our words."""
    return Translation(
        request=CreateEmbeddingRequest(
            model=data.model,
            input=[*data.inputs],
            input_type=data.input_type,
            truncation=data.truncation is not False,
            encoding_format=data.output_encoding or data.encoding_format,
            output_dimension=data.output_dimension,
            output_dtype=data.output_dtype,
        ),
        names=Names(inputs="inputs"),
    )


class VoyageUsage(Struct, frozen=True, kw_only=True):
    """What was computed."""

    text_tokens: int
    """Special tokens and prompts included."""
    image_pixels: int
    """Of the images as the model read them, not as they were sent."""
    video_pixels: Literal[0] = 0
    """Voyage's SDK needs the key."""
    total_tokens: int


class VoyageMultimodalResponse(Struct, frozen=True, kw_only=True):
    """The answer of ``POST /v1/multimodalembeddings``; ``data`` is in input order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: VoyageUsage


class VoyageErrorResponse(Struct, frozen=True):
    """A failure: ``detail`` where Voyage's clients look for it, beside the envelope of every endpoint."""

    detail: str
    error: Error


async def answer(
    embeddings: Embeddings,
    *,
    dimensions: int | None,
    normalize: bool,
    encoding_format: str,
    model: str,
    info: ModelInfo,
) -> bytes:
    """The body of ``POST /v1/multimodalembeddings``."""
    num_tokens, num_image_tokens = sum(embeddings.num_tokens), sum(embeddings.num_image_tokens)
    token_pixels = 0 if info.images is None else info.images.spec.token_side**2
    usage = VoyageUsage(
        text_tokens=num_tokens - num_image_tokens,
        image_pixels=num_image_tokens * token_pixels,
        total_tokens=num_tokens,
    )
    is_base64 = encoding_format == "base64"

    def build() -> VoyageMultimodalResponse:
        rows_ND = finish_rows(embeddings.rows, dimensions=dimensions, normalize=normalize)
        texts = base64_texts(rows_ND) if is_base64 else float_texts(rows_ND)
        data = [Embedding(index=index, embedding=text) for index, text in enumerate(texts)]
        return VoyageMultimodalResponse(data=data, model=model, usage=usage)

    num_values = len(embeddings.rows) * (dimensions or embeddings.rows.shape[1])
    value_bytes = BASE64_BYTES if is_base64 else FLOAT_TEXT_BYTES
    return await encoded(build, num_bytes=num_values * value_bytes)
