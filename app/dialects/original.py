"""The bodies of the service that came before: plain lists of texts, of images, or of both."""

from typing import Annotated, ClassVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from app.dialects.translation import Names, Translation
from app.engine import Embeddings
from app.errors import InvalidRequestError
from app.inputs import unsupported_modality
from app.outputs import FLOAT_TEXT_BYTES, encoded, finish_rows, float_texts
from app.wire import CreateEmbeddingRequest, Item, SimilarityResponse
from model import ModelInfo

# N texts, or M images, or both

Texts = Annotated[list[str], Meta(description="The texts, at least one.")]
Images = Annotated[
    list[str],
    Meta(
        description="The images, at least one: http(s) URLs where the server fetches them, data URIs, or raw "
        "base64."
    ),
]
Instruction = Annotated[
    str | None,
    Meta(description="An instruction for every input, in place of the model's prompt. Empty: no prompt."),
]
IsQuery = Annotated[
    bool | None,
    Meta(
        description="`true`: the inputs are queries, and an instruction counts. `false`: they are documents, "
        "and models that instruct queries alone leave it out. Default: the server's `default_input_type`, "
        "else as `true`."
    ),
]


# Requests --------------------------------------------------------------------------------------------------


class TextsRequest(Struct, frozen=True):
    """The body of ``POST /embeddings/text``."""

    required_params: ClassVar[tuple[str, ...]] = ("texts",)

    # Optional for msgspec, so that images in their place are what the answer is about.
    texts: Texts | msgspec.UnsetType = msgspec.UNSET
    instruction: Instruction = None
    images: Annotated[
        list[str] | msgspec.UnsetType | None, Meta(description="Not read here: answered with 400.")
    ] = msgspec.UNSET


class ImagesRequest(Struct, frozen=True):
    """The body of ``POST /embeddings/image``."""

    required_params: ClassVar[tuple[str, ...]] = ("images",)

    images: Images
    instruction: Instruction = None
    is_query: IsQuery = None


class FusedRequest(Struct, frozen=True):
    """The body of ``POST /embeddings/fused``: the first text with the first image, and so on."""

    required_params: ClassVar[tuple[str, ...]] = ("texts", "images")

    texts: Texts
    images: Images
    instruction: Instruction = None
    is_query: IsQuery = None


class SimilarityRequest(Struct, frozen=True):
    """The body of ``POST /similarity``: texts against images, or either against themselves."""

    required_params: ClassVar[tuple[str, ...]] = ()

    texts: Annotated[list[str] | None, Meta(description="The texts: the rows, where there are images.")] = (
        None
    )
    images: Annotated[
        list[str] | None, Meta(description="The images, as in `/embeddings/image`: the columns.")
    ] = None
    instruction: Annotated[
        str | None, Meta(description="An instruction for every text, in place of the model's prompt.")
    ] = None


# Translations ----------------------------------------------------------------------------------------------


def translate_texts(data: TextsRequest, *, model: str, info: ModelInfo) -> Translation:
    """Say it in our words.

    Raises:
        InvalidRequestError: There are images, which would have to be left out.
    """
    if data.images:
        if info.images is None:
            raise unsupported_modality("images")
        raise InvalidRequestError(
            "'images' are not read here. Send them to /embeddings/image, or with their texts to "
            "/embeddings/fused.",
            param="images",
        )
    return Translation(
        request=CreateEmbeddingRequest(
            model=model,
            input=msgspec.UNSET if data.texts is msgspec.UNSET else [*data.texts],
            instruction=data.instruction,
            modality="text",
        ),
        names=Names(inputs="texts"),
    )


def translate_images(data: ImagesRequest, *, model: str) -> Translation:
    """Say it in our words."""
    return Translation(
        request=CreateEmbeddingRequest(
            model=model,
            input=[Item(image=image) for image in data.images],
            instruction=data.instruction,
            input_type=input_type_of(data.is_query),
        ),
        names=Names(inputs="images", element=name_image),
        lane_follows_shape=data.is_query is True,
    )


def translate_fused(data: FusedRequest, *, model: str) -> Translation:
    """Say it in our words.

    Raises:
        InvalidRequestError: There are more of one than of the other.
    """
    if len(data.texts) != len(data.images):
        raise InvalidRequestError(
            f"'texts' holds {len(data.texts)} and 'images' {len(data.images)} elements; each text belongs to "
            "the image of the same index.",
            param="images",
        )
    return Translation(
        request=CreateEmbeddingRequest(
            model=model,
            input=[Item(text=text, image=image) for text, image in zip(data.texts, data.images, strict=True)],
            instruction=data.instruction,
            input_type=input_type_of(data.is_query),
        ),
        names=Names(inputs="texts", element=name_pair),
        lane_follows_shape=data.is_query is True,
    )


def translate_similarity(data: SimilarityRequest, *, model: str) -> Translation:
    """Say it in our words: texts first, then images.

    Texts that are to find images are queries. Texts among themselves are what the request or the server says
    of every text, as on the other endpoints.

    Raises:
        InvalidRequestError: There is nothing to compare.
    """
    texts, images = data.texts or [], data.images or []
    if not texts and not images:
        raise InvalidRequestError("Send 'texts', 'images' or both, at least one of them.", param="texts")
    text_type = "query" if images else None
    items = [Item(text=text, instruction=data.instruction, input_type=text_type) for text in texts]
    items += [Item(image=image, input_type="document") for image in images]

    def name_element(index: int, path: str) -> str:
        if path == ".instruction":
            return "instruction"
        return f"texts[{index}]" if index < len(texts) else f"images[{index - len(texts)}]"

    lists = ", ".join(name for name, given in (("texts", texts), ("images", images)) if given)
    return Translation(
        request=CreateEmbeddingRequest(model=model, input=[*items]),
        names=Names(inputs=lists, element=name_element),
    )


def input_type_of(is_query: bool | None) -> str | None:
    """The side that ``is_query`` names."""
    return {True: "query", False: "document", None: None}[is_query]


def name_image(index: int, path: str) -> str:
    """An item of an image alone is that image."""
    return f"images[{index}]"


def name_pair(index: int, path: str) -> str:
    """Which half of a pair is meant; of the pair as a whole, it is the text that can be too long."""
    return f"images[{index}]" if path == ".image" else f"texts[{index}]"


# Answers ---------------------------------------------------------------------------------------------------


async def similarity_answer(embeddings: Embeddings, *, num_texts: int) -> bytes:
    """The body of ``POST /similarity``: cosines of the first ``num_texts`` rows with the rest.

    With texts only, or with images only, of every row with every row.
    """
    num_rows = len(embeddings.rows)
    is_two_sided = 0 < num_texts < num_rows

    def build() -> SimilarityResponse:
        rows_ND = finish_rows(embeddings.rows, dimensions=None, normalize=True)
        left_ND, right_MD = (rows_ND[:num_texts], rows_ND[num_texts:]) if is_two_sided else (rows_ND, rows_ND)
        # Rounding takes a cosine past 1 by an ulp or two, and acos() of that is NaN in the client.
        cosines_NM = np.clip(left_ND @ right_MD.T, -1, 1)
        return SimilarityResponse(
            similarity_matrix=float_texts(cosines_NM), shape=(len(left_ND), len(right_MD))
        )

    num_values = num_texts * (num_rows - num_texts) if is_two_sided else num_rows**2
    return await encoded(build, num_bytes=num_values * FLOAT_TEXT_BYTES)
