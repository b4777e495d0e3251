"""From every allowed spelling of a request to one list of ``EmbeddingInput``.

Laws: after this file nobody asks what the client's shape was; what the served model cannot embed is refused
here, with the client's name for it. Nothing here waits: the vocabulary for token arrays is handed in, loaded,
where ``needs_cl100k`` says that it will be used, and images are only referred to.

What the vectors are made of is read in ``elements.py``, what holds for all of them in ``defaults.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from app.data_uris import starts_image_uri
from app.defaults import Defaults, check_instruction, read_defaults, read_input_type
from app.elements import (
    Content,
    Element,
    Said,
    read_element,
    read_modalities,
    split_request,
)
from app.errors import InvalidRequestError, ModelNotFoundError, TokenArrayError, quoted
from app.images import ImageReference, read_image_reference
from app.lanes import choose_lane, choose_timeout_s
from app.outputs import dimension_choices
from app.preparation import RequestTooLargeError
from app.prompts import MODEL_SUFFIXES, Side, choose_prompt, side_of, split_model_name
from app.settings import Settings, TokenIds
from app.tokens import Cl100k, Cl100kIdError
from app.wire import CreateEmbeddingRequest, Input
from batching import Lane
from model import DOCUMENT_NAMES, EmbeddingInput, ModelInfo

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that clients send when nobody told them another."""

LANGCHAIN_HINT = "LangChain sends strings with check_embedding_ctx_length=False."


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A request after every question about its spelling has been settled."""

    inputs: tuple[EmbeddingInput, ...]
    """Without their images: those are still to be fetched and decoded."""
    params: tuple[str, ...]
    """What the client calls each input: ``input``, ``input[3]``. For error messages."""
    image_references: tuple[tuple[ImageReference, ...], ...] = ()
    """Of each input, in its order. Empty if the request has no images at all."""
    lane: Lane
    timeout_s: float
    dimensions: int | None = None
    """``None``: the model's own."""
    encoding_format: str = "float"
    normalize: bool = True
    token_encoding: TokenIds | None = None
    """How token arrays were read; ``None`` if there were none."""
    ignored: tuple[str, ...] = ()
    """What the client said and the model does not read; for ``x-ignored-params``."""


# Model names -----------------------------------------------------------------------------------------------


def known_names(served_name: str, aliases: Sequence[str], *, openai_aliases: bool) -> tuple[str, ...]:
    """The served name first, then the other names it answers to."""
    openai = OPENAI_NAMES if openai_aliases else ()
    return tuple(dict.fromkeys((served_name, *aliases, *openai)))


def suffixed_names(served_name: str) -> tuple[str, ...]:
    """The served name with each input type that it may end in."""
    return tuple(f"{served_name}-{suffix}" for suffix in MODEL_SUFFIXES)


def resolve_model(name: str, known: Sequence[str]) -> str | None:
    """Check a model name, and take the input type off its end.

    Returns:
        The input type that the name asks for, if it asks for one.

    Raises:
        ModelNotFoundError: It is not among the known names.
    """
    stem, suffix = split_model_name(name, known)
    if stem not in known:
        raise ModelNotFoundError(name, known)
    return suffix


# The request as a whole ------------------------------------------------------------------------------------


def needs_cl100k(request: CreateEmbeddingRequest, default: TokenIds) -> bool:
    """Whether parsing the request will read cl100k_base ids."""
    return has_token_arrays(request.input) and _token_encoding(request, default) is TokenIds.CL100K_BASE


def has_token_arrays(given: Input | msgspec.UnsetType) -> bool:
    """Whether ids stand anywhere in ``input``."""
    if not isinstance(given, list):
        return False
    return any(
        isinstance(element, int) or (isinstance(element, list) and element and isinstance(element[0], int))
        for element in given
    )


def parse(
    request: CreateEmbeddingRequest,
    *,
    headers: Mapping[str, str],
    model_input_type: str | None,
    info: ModelInfo,
    settings: Settings,
    cl100k: Cl100k | None,
) -> EmbeddingRequest:
    """Read a whole request.

    Args:
        request: The decoded body.
        headers: Request headers, looked up in lower case.
        model_input_type: What the model's name asked for: ``resolve_model``.
        info: The served model.
        settings: Limits and defaults.
        cl100k: The vocabulary, where ``needs_cl100k`` asked for it.

    Raises:
        InvalidRequestError: Something is wrong; ``param`` says where.
        RequestTooLargeError: There are more token ids than a request may have.
    """
    _refuse_unserved_types(request)
    elements = _elements(request, info=info, settings=settings)
    input_type = read_input_type(request, headers=headers, model_input_type=model_input_type)
    reader = _Reader(
        info=info,
        settings=settings,
        defaults=read_defaults(request, input_type=input_type, info=info, settings=settings),
        token_encoding=_token_encoding(request, settings.model.token_ids),
        cl100k=cl100k,
    )
    _limit_token_ids(elements, max_tokens=settings.limits.max_request_tokens)
    _limit_images(elements, max_images=settings.media.max_images)
    inputs = tuple(map(reader.read, elements))
    return EmbeddingRequest(
        inputs=inputs,
        params=tuple(element.param for element in elements),
        image_references=_image_references(elements, settings),
        lane=choose_lane(
            priority=request.priority,
            header_priority=headers.get("x-priority"),
            sides=_sides(input_type, elements),
            num_inputs=len(inputs),
        ),
        timeout_s=choose_timeout_s(
            timeout_ms=request.timeout_ms, headers=headers, default_s=settings.limits.request_timeout_s
        ),
        dimensions=_dimensions(request, info),
        encoding_format=request.encoding_format or "float",
        normalize=_first_said(request.normalize, request.normalized, default=True),
        token_encoding=reader.token_encoding if has_token_arrays(request.input) else None,
        ignored=_ignored(request, elements, inputs, info),
    )


def _elements(request: CreateEmbeddingRequest, *, info: ModelInfo, settings: Settings) -> list[Element]:
    spellings = split_request(request, max_inputs=settings.limits.max_inputs)
    modalities = read_modalities(request.modality, num_inputs=len(spellings))
    if info.images is None and any(word not in (None, "text") for word in modalities):
        raise unsupported_modality("modality")
    return [
        read_element(spelling, param=param, modality=modality)
        for (param, spelling), modality in zip(spellings, modalities, strict=True)
    ]


def _refuse_unserved_types(request: CreateEmbeddingRequest) -> None:
    """Refuse what would change the answer's meaning if it were ignored."""
    for param, value in (("embedding_type", request.embedding_type), ("output_dtype", request.output_dtype)):
        if value not in (None, "float", ["float"]):
            raise InvalidRequestError(
                f"'{param}' must be 'float'; for base64 of float32 set 'encoding_format'.", param=param
            )


def _first_said(*values: bool | None, default: bool) -> bool:
    return next((value for value in values if value is not None), default)


def _dimensions(request: CreateEmbeddingRequest, info: ModelInfo) -> int | None:
    """Read ``dimensions``, or ``output_dimension``, which is the same."""
    param, dimensions = ("dimensions", request.dimensions)
    if dimensions is None:
        param, dimensions = ("output_dimension", request.output_dimension)
    if dimensions is None:
        return None
    choices = dimension_choices(info.dimension, info.matryoshka_dimensions)
    if isinstance(dimensions, int) and dimensions in choices:
        return dimensions
    if isinstance(dimensions, float):
        raise InvalidRequestError(
            f"Invalid value for '{param}': expected integer, got number.",
            param=param,
            code="invalid_dimensions",
        )
    raise InvalidRequestError(
        f"This model gives no vectors of {dimensions} dimensions. Allowed: {', '.join(map(str, choices))}.",
        param=param,
        code="invalid_dimensions",
    )


def _token_encoding(request: CreateEmbeddingRequest, default: TokenIds) -> TokenIds:
    if request.token_encoding is None:
        return default
    try:
        return TokenIds(request.token_encoding)
    except ValueError:
        raise InvalidRequestError(
            f"{quoted(request.token_encoding)} is not a token encoding. Allowed: {', '.join(TokenIds)}.",
            param="token_encoding",
        ) from None


def _limit_token_ids(elements: Sequence[Element], *, max_tokens: int) -> None:
    """Refuse floods of ids before each of them is looked up."""
    num_tokens = sum(len(element.content) for element in elements if isinstance(element.content, list))
    if num_tokens > max_tokens:
        raise RequestTooLargeError(num_tokens=num_tokens, max_tokens=max_tokens)


def _limit_images(elements: Sequence[Element], *, max_images: int) -> None:
    """Refuse floods of images before any of them is looked at."""
    images = [image for element in elements for image in element.images]
    if len(images) > max_images:
        raise InvalidRequestError(
            f"The request holds {len(images)} images; one request may hold {max_images} (max_images).",
            param=images[max_images].param,
            code="too_many_images",
        )


def _image_references(
    elements: Sequence[Element], settings: Settings
) -> tuple[tuple[ImageReference, ...], ...]:
    if not any(element.images for element in elements):
        return ()
    return tuple(
        tuple(
            read_image_reference(image.text, param=image.param, settings=settings.media)
            for image in element.images
        )
        for element in elements
    )


def _sides(said: Said | None, elements: Sequence[Element]) -> set[Side]:
    """The sides that the request named, for all inputs or for single ones."""
    names = {element.input_type.text for element in elements if element.input_type is not None}
    if said is not None:
        names.add(said.text)
    return {side for side in map(side_of, names) if side is not None}


def _ignored(
    request: CreateEmbeddingRequest,
    elements: Sequence[Element],
    inputs: Sequence[EmbeddingInput],
    info: ModelInfo,
) -> tuple[str, ...]:
    """What was said and is not read, in the client's words.

    Instructions for documents, where the model was trained with instructions for queries only: clients set
    one instruction and embed both sides with it; refused, they could not use the model at all. The request's
    instruction, where every input has settings of its own. And how closely to look at an image.
    """
    params: list[str] = []
    if info.template is not None and not info.template.instructs_documents:
        params += [
            "instruction" if element.instruction is None else element.instruction.param
            for element, one in zip(elements, inputs, strict=True)
            if one.instruction and one.prompt_name in DOCUMENT_NAMES
        ]
    if request.instruction is not None and all(
        element.instruction is not None or element.input_type is not None for element in elements
    ):
        params.append("instruction")
    for element in elements:
        if isinstance(element.content, Content):
            params += element.content.ignored
    return tuple(dict.fromkeys(params))


# One input a vector ----------------------------------------------------------------------------------------


def unsupported_modality(param: str | None = None) -> InvalidRequestError:
    """The refusal of whatever is not text."""
    return InvalidRequestError(
        "This model embeds text only; images are not supported.", param=param, code="unsupported_modality"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Makes one ``EmbeddingInput`` of one element, without its images."""

    info: ModelInfo
    settings: Settings
    defaults: Defaults
    token_encoding: TokenIds
    cl100k: Cl100k | None

    def read(self, element: Element) -> EmbeddingInput:
        """Read an element.

        Raises:
            InvalidRequestError: The model cannot embed it, or it is empty or too long.
        """
        if isinstance(element.content, list):
            return self._of_ids(element.content, param=element.param)
        self._check_images(element)
        text = self._checked_text(element.content)
        if element.instruction is not None:
            check_instruction(element.instruction)
        own_instruction = element.instruction and element.instruction.text
        if element.input_type is None:
            prompt_name = self.defaults.prompt_name
            instruction = own_instruction if own_instruction is not None else self.defaults.instruction
        else:
            # What it says of itself goes before the request's instruction, which was meant for the others.
            prompt_name = choose_prompt(
                element.input_type.text, prompts=self.info.prompts, param=element.input_type.param
            )
            instruction = own_instruction
        return self._input(text=text, prompt_name=prompt_name, instruction=instruction)

    def _input(self, *, text: str | None, prompt_name: str | None, instruction: str | None) -> EmbeddingInput:
        return EmbeddingInput(
            text=text,
            prompt_name=prompt_name,
            instruction=instruction,
            truncation=self.defaults.truncation,
            max_tokens=self.defaults.max_tokens,
        )

    def _check_images(self, element: Element) -> None:
        """Refuse images that the model does not read, or not together."""
        if not element.images:
            return
        images = self.info.images
        if images is None:
            raise unsupported_modality(element.images[0].param)
        if len(element.images) > images.max_images:
            raise InvalidRequestError(
                f"'{element.param}' holds {len(element.images)} images; this model reads {images.max_images} "
                "in one input.",
                param=element.param,
                code="too_many_images",
            )
        if isinstance(element.content, Content) and element.content.text and not images.is_fused_with_text:
            raise InvalidRequestError(
                f"'{element.param}' holds a text and an image; this model embeds each of them alone. Send "
                "them as two inputs.",
                param=element.param,
                code="unsupported_modality",
            )

    def _checked_text(self, content: Content) -> str | None:
        if content.text is None:
            return None
        text, param = content.text.text, content.text.param
        max_chars = self.settings.limits.max_input_chars
        if not text:
            raise InvalidRequestError(f"'{param}' is an empty string.", param=param)
        if len(text) > max_chars:
            raise InvalidRequestError(
                f"'{param}' has {len(text)} characters; an input may have {max_chars} (max_input_chars).",
                param=param,
                code="context_length_exceeded",
            )
        return text

    def _of_ids(self, token_ids: list[int], *, param: str) -> EmbeddingInput:
        match self.token_encoding:
            case TokenIds.CL100K_BASE:
                text = Said(text=self._decoded(token_ids, param=param), param=param)
                return self._input(
                    text=self._checked_text(Content(text=text)),
                    prompt_name=self.defaults.prompt_name,
                    instruction=self.defaults.instruction,
                )
            case TokenIds.MODEL:
                return self._of_token_ids(token_ids, param=param)
            case TokenIds.REJECT:
                raise TokenArrayError(
                    f"Token arrays are not accepted here; send strings. {LANGCHAIN_HINT}",
                    param=param,
                    code="token_arrays_rejected",
                    outcome="rejected",
                )

    def _of_token_ids(self, token_ids: list[int], *, param: str) -> EmbeddingInput:
        if (prompting := self.defaults.prompting_param) is not None:
            raise TokenArrayError(
                f"'{param}' holds token ids, which are taken as they are; {prompting} would put a prompt "
                f"before them. Send strings, or leave {prompting} out.",
                param=prompting,
                code="invalid_input",
                outcome="prompted",
            )
        size = self.info.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < size:
                raise _invalid_token_id(f"{token_id} is not one of the model's {size} token ids", param=param)
        return EmbeddingInput(
            token_ids=tuple(token_ids),
            truncation=self.defaults.truncation,
            max_tokens=self.defaults.max_tokens,
        )

    def _decoded(self, token_ids: list[int], *, param: str) -> str:
        assert self.cl100k is not None, "needs_cl100k said that the vocabulary would be needed"
        try:
            text = self.cl100k.decode(token_ids)
        except Cl100kIdError as error:
            raise _invalid_token_id(str(error), param=param) from None
        if starts_image_uri(text):
            # LangChain cuts it into chunks and averages their vectors: noise, whatever the model.
            raise TokenArrayError(
                f"'{param}' holds the token ids of an image's data URI. {LANGCHAIN_HINT}",
                param=param,
                code="unsupported_modality",
                outcome="image",
            )
        if not text:
            raise TokenArrayError(
                f"'{param}' stands for an empty text.", param=param, code="invalid_input", outcome="empty"
            )
        return text


def _invalid_token_id(what: str, *, param: str) -> TokenArrayError:
    return TokenArrayError(
        f"'{param}': {what}. {LANGCHAIN_HINT}", param=param, code="invalid_token_id", outcome="invalid_id"
    )
