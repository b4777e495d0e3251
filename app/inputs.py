"""From every allowed spelling of a request to one list of ``EmbeddingInput``.

Laws: after this file nobody asks what the client's shape was; the number of vectors is never guessed; which
prompt an input gets is only ever what was said, never what its batch looks like. Nothing here waits: the
vocabulary for token arrays is handed in, loaded, where ``needs_cl100k`` says that it will be used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from app.engine import RequestTooLargeError
from app.errors import InvalidRequestError, ModelNotFoundError, TokenArrayError, quoted
from app.lanes import choose_lane, choose_timeout_s
from app.outputs import dimension_choices
from app.prompts import MODEL_SUFFIXES, Side, choose_prompt, side_of, split_model_name
from app.settings import Settings, TokenIds
from app.tokens import Cl100k, Cl100kIdError
from app.wire import CreateEmbeddingRequest, Element, Input, Item, Part, TextPart
from batching import Lane
from model import EmbeddingInput, ModelInfo, Truncation

OPENAI_NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that clients send when nobody told them another."""

MAX_INSTRUCTION_CHARS = 8_000
"""An instruction is a sentence or two, and stands before every input: its cost is multiplied by theirs."""

LANGCHAIN_HINT = "LangChain sends strings with check_embedding_ctx_length=False."


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """A request after every question about its spelling has been settled."""

    inputs: tuple[EmbeddingInput, ...]
    params: tuple[str, ...]
    """What the client calls each input: ``input``, ``input[3]``. For error messages."""
    lane: Lane
    timeout_s: float
    dimensions: int | None = None
    """``None``: the model's own."""
    encoding_format: str = "float"
    normalize: bool = True
    token_encoding: TokenIds | None = None
    """How token arrays were read; ``None`` if there were none."""


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
    elements = _elements(request, max_inputs=settings.limits.max_inputs)
    said = _said_input_type(request, headers=headers, model_input_type=model_input_type)
    reader = _Reader(
        info=info,
        settings=settings,
        defaults=_defaults(request, said=said, info=info, settings=settings),
        token_encoding=_token_encoding(request, settings.model.token_ids),
        cl100k=cl100k,
    )
    modalities = _modalities(request, num_inputs=len(elements))
    _limit_token_ids(elements, max_tokens=settings.limits.max_request_tokens)
    inputs = tuple(
        reader.read(element, param=param, is_text=modality == "text")
        for (param, element), modality in zip(elements, modalities, strict=True)
    )
    return EmbeddingRequest(
        inputs=inputs,
        params=tuple(param for param, _ in elements),
        lane=choose_lane(
            priority=request.priority,
            header_priority=headers.get("x-priority"),
            sides=_sides(said and said.name, elements),
            num_inputs=len(inputs),
        ),
        timeout_s=choose_timeout_s(
            timeout_ms=request.timeout_ms, headers=headers, default_s=settings.limits.request_timeout_s
        ),
        dimensions=_dimensions(request.dimensions, info),
        encoding_format=request.encoding_format or "float",
        normalize=_first_said(request.normalize, request.normalized, default=True),
        token_encoding=reader.token_encoding if has_token_arrays(request.input) else None,
    )


def parse_texts(
    texts: Sequence[str] | msgspec.UnsetType,
    *,
    instruction: str | None,
    headers: Mapping[str, str],
    info: ModelInfo,
    settings: Settings,
) -> EmbeddingRequest:
    """Read the plain list of texts of the original endpoints, by the same rules.

    Raises:
        InvalidRequestError: Something is wrong; ``param`` says where.
    """
    if texts is msgspec.UNSET:
        raise InvalidRequestError("Missing required parameter: 'texts'.", param="texts")
    request = CreateEmbeddingRequest(model="", input=list(texts), instruction=instruction, modality="text")
    try:
        wanted = parse(
            request, headers=headers, model_input_type=None, info=info, settings=settings, cl100k=None
        )
    except InvalidRequestError as error:
        # The field has another name here; the rest of the message holds.
        message = re.sub(r"^'input\b", "'texts", error.message)
        param = error.param and re.sub(r"^input\b", "texts", error.param)
        raise InvalidRequestError(message, param=param, code=error.code) from None
    return replace(wanted, params=tuple(param.replace("input", "texts", 1) for param in wanted.params))


def _refuse_unserved_types(request: CreateEmbeddingRequest) -> None:
    """Refuse what would change the answer's meaning if it were ignored."""
    if request.messages is not msgspec.UNSET and bytes(request.messages) != b"null":
        raise InvalidRequestError(
            "'messages' is not supported; send the text of a conversation as input.", param="messages"
        )
    for param, value in (("embedding_type", request.embedding_type), ("output_dtype", request.output_dtype)):
        if value not in (None, "float", ["float"]):
            raise InvalidRequestError(
                f"'{param}' must be 'float'; for base64 of float32 set 'encoding_format'.", param=param
            )


def _first_said(*values: bool | None, default: bool) -> bool:
    return next((value for value in values if value is not None), default)


def _dimensions(dimensions: float | None, info: ModelInfo) -> int | None:
    if dimensions is None:
        return None
    choices = dimension_choices(info.dimension, info.matryoshka_dimensions)
    if isinstance(dimensions, int) and dimensions in choices:
        return dimensions
    if isinstance(dimensions, float):
        raise InvalidRequestError(
            "Invalid value for 'dimensions': expected integer, got number.",
            param="dimensions",
            code="invalid_dimensions",
        )
    raise InvalidRequestError(
        f"This model gives no vectors of {dimensions} dimensions. Allowed: {', '.join(map(str, choices))}.",
        param="dimensions",
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


def _limit_token_ids(elements: Sequence[tuple[str, "_Element"]], *, max_tokens: int) -> None:
    """Refuse floods of ids before each of them is looked up."""
    num_tokens = sum(len(element) for _, element in elements if isinstance(element, list))
    if num_tokens > max_tokens:
        raise RequestTooLargeError(num_tokens=num_tokens, max_tokens=max_tokens)


# Query, document or neither --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _SaidInputType:
    """An input type, and where it was said."""

    name: str
    param: str


def _said_input_type(
    request: CreateEmbeddingRequest, *, headers: Mapping[str, str], model_input_type: str | None
) -> _SaidInputType | None:
    """What the request says of all its inputs: in the body, else in a header, else in the model's name."""
    spoken = {
        "input_type": request.input_type,
        "task": request.task,
        "prompt_name": request.prompt_name,
    }
    said = {param: name for param, name in spoken.items() if name is not None}
    kinds = {side_of(name) or name for name in said.values()}
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"{' and '.join(map(repr, said))} contradict each other; send one of them.", param=list(said)[1]
        )
    if said:
        param, name = next(iter(said.items()))
        return _SaidInputType(name=name, param=param)
    if header := headers.get("x-input-type"):
        return _SaidInputType(name=header, param="X-Input-Type")
    if model_input_type is not None:
        return _SaidInputType(name=model_input_type, param="model")
    return None


def _sides(said: str | None, elements: Sequence[tuple[str, "_Element"]]) -> set[Side]:
    """The sides that the request named, for all inputs or for single ones."""
    own = {element.input_type for _, element in elements if isinstance(element, Item) and element.input_type}
    return {side for side in map(side_of, own | {said} if said else own) if side is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    """What holds for every input that says nothing itself; fields as in ``EmbeddingInput``."""

    prompt_name: str | None
    instruction: str | None
    truncation: Truncation
    max_tokens: int | None
    prompting_param: str | None
    """Where the request itself asked for a text before its inputs; ``None`` if nowhere."""


def _defaults(
    request: CreateEmbeddingRequest, *, said: _SaidInputType | None, info: ModelInfo, settings: Settings
) -> _Defaults:
    if said is not None:
        prompt_name = choose_prompt(said.name, prompts=info.prompts, param=said.param)
    elif settings.model.default_input_type is not None:
        prompt_name = choose_prompt(
            settings.model.default_input_type, prompts=info.prompts, param="default_input_type"
        )
    else:
        prompt_name = None
    max_tokens = request.truncate_prompt_tokens
    if max_tokens is not None and max_tokens != -1 and max_tokens < 1:
        raise InvalidRequestError(
            f"'truncate_prompt_tokens' must be at least 1, or -1 for the model's limit, not {max_tokens}.",
            param="truncate_prompt_tokens",
        )
    return _Defaults(
        prompt_name=prompt_name,
        instruction=_checked_instruction(request.instruction, param="instruction"),
        truncation=_truncation(request, default=Truncation(str(settings.model.truncate))),
        max_tokens=None if max_tokens in (None, -1) else min(max_tokens, info.max_tokens),
        prompting_param=_prompting_param(
            request.instruction, said, prompt=info.prompts.get(prompt_name or "")
        ),
    )


def _prompting_param(
    instruction: str | None, said: _SaidInputType | None, *, prompt: str | None
) -> str | None:
    if instruction is not None:
        return "instruction" if instruction else None
    return said.param if said is not None and prompt else None


def _checked_instruction(instruction: str | None, *, param: str) -> str | None:
    if instruction is not None and len(instruction) > MAX_INSTRUCTION_CHARS:
        raise InvalidRequestError(
            f"'{param}' has {len(instruction)} characters; an instruction may have {MAX_INSTRUCTION_CHARS}.",
            param=param,
        )
    return instruction


def _truncation(request: CreateEmbeddingRequest, *, default: Truncation) -> Truncation:
    """Read ``truncate`` (NONE, START, END, or a bool) or ``truncation`` (the same).

    ``truncate_prompt_tokens`` alone asks for a cut, too.
    """
    param, value = ("truncate", request.truncate)
    if value is None:
        param, value = ("truncation", request.truncation)
    if value is None:
        wants_cut = request.truncate_prompt_tokens is not None and default is Truncation.NONE
        return Truncation.END if wants_cut else default
    if isinstance(value, bool):
        if not value:
            return Truncation.NONE
        return Truncation.END if default is Truncation.NONE else default
    try:
        return Truncation(value.lower())
    except ValueError:
        allowed = ", ".join(one.upper() for one in Truncation)
        raise InvalidRequestError(
            f"{quoted(value)} is not a way to truncate. Allowed: {allowed}, true, false.", param=param
        ) from None


# One vector an element -------------------------------------------------------------------------------------

_Element = str | Item | list[int | Part]
"""An element that stands for one vector: a bare id does not."""


def _elements(request: CreateEmbeddingRequest, *, max_inputs: int) -> list[tuple[str, _Element]]:
    """Sort out the top level: what the vectors are to be made of, each with the client's name for it."""
    given = request.input
    if given is msgspec.UNSET:
        raise InvalidRequestError("Missing required parameter: 'input'.", param="input")
    if not isinstance(given, list):
        return [("input", given)]
    if not given:
        raise InvalidRequestError("'input' is empty; send at least one text.", param="input")
    ids = [element for element in given if isinstance(element, int)]
    if len(ids) == len(given):
        return [("input", [*ids])]
    if len(given) > max_inputs:
        raise InvalidRequestError(
            f"'input' holds {len(given)} inputs; one request may hold {max_inputs} (max_inputs).",
            param="input",
        )
    return [(f"input[{index}]", _one(element, index)) for index, element in enumerate(given)]


def _one(element: Element, index: int) -> _Element:
    if isinstance(element, int):
        param = f"input[{index}]"
        raise InvalidRequestError(
            f"'{param}' is a bare token id among other inputs; put a token array into a list of its own.",
            param=param,
        )
    return element


_MODALITIES = ("text", "image", "text_image")


def _modalities(request: CreateEmbeddingRequest, *, num_inputs: int) -> Sequence[str | None]:
    """How each string is to be read, where the client says so: one word for all, or one for each."""
    given = request.modality
    if given is None:
        return [None] * num_inputs
    words = [given] * num_inputs if isinstance(given, str) else given
    if len(words) != num_inputs:
        raise InvalidRequestError(
            f"'modality' has {len(words)} values for {num_inputs} inputs.", param="modality"
        )
    for word in words:
        if word not in _MODALITIES:
            raise InvalidRequestError(
                f"{quoted(word)} is not a modality. Allowed: {', '.join(_MODALITIES)}.", param="modality"
            )
        if word != "text":
            raise unsupported_modality(param="modality")
    return words


def unsupported_modality(param: str | None = None) -> InvalidRequestError:
    """The refusal of whatever is not text."""
    return InvalidRequestError(
        "This model embeds text only; images are not supported.", param=param, code="unsupported_modality"
    )


_DATA_URI_START = "data:image/"
# No two neighbours here match the same character, so it never goes back: 4 million characters take 20 ms.
_DATA_URI = re.compile(rf"{_DATA_URI_START}[a-z0-9.+-]+;base64,[a-z0-9+/=_\-\r\n]*", re.IGNORECASE)


def is_image_uri(text: str) -> bool:
    """Whether the whole string is an image's data URI. A text that quotes one has spaces in it somewhere."""
    return starts_image_uri(text) and _DATA_URI.fullmatch(text.strip()) is not None


def starts_image_uri(text: str) -> bool:
    """Whether a string begins like an image's data URI."""
    return text.lstrip()[: len(_DATA_URI_START)].lower() == _DATA_URI_START


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Makes one ``EmbeddingInput`` of one element."""

    info: ModelInfo
    settings: Settings
    defaults: _Defaults
    token_encoding: TokenIds
    cl100k: Cl100k | None

    def read(self, element: _Element, *, param: str, is_text: bool) -> EmbeddingInput:
        """Read an element; ``is_text`` is the client's word that a string is no image."""
        match element:
            case str():
                if not is_text and is_image_uri(element):
                    raise unsupported_modality(param)
                return self._of_text(element, param=param)
            case Item():
                return self._of_item(element, param=param)
            case []:
                raise InvalidRequestError(f"'{param}' is an empty list.", param=param)
            case _:
                return self._of_list(element, param=param)

    def _of_text(
        self,
        text: str,
        *,
        param: str,
        prompt_name: str | None = None,
        instruction: str | None = None,
        is_own: bool = False,
    ) -> EmbeddingInput:
        """Make an input of a text; ``is_own``: prompt and instruction are its own, not the request's."""
        return EmbeddingInput(
            text=self._checked(text, param=param),
            prompt_name=prompt_name if is_own else self.defaults.prompt_name,
            instruction=instruction if is_own else self.defaults.instruction,
            truncation=self.defaults.truncation,
            max_tokens=self.defaults.max_tokens,
        )

    def _checked(self, text: str, *, param: str) -> str:
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

    def _of_item(self, item: Item, *, param: str) -> EmbeddingInput:
        if item.image is not None:
            raise unsupported_modality(f"{param}.image")
        match item.content, item.text:
            case None, None:
                raise InvalidRequestError(f"'{param}' has neither content nor text.", param=param)
            case None, str(text):
                field = f"{param}.text"
            case str(text), None:
                field = f"{param}.content"
            case list(parts), None:
                field = f"{param}.content"
                text = _joined_text(parts, param=field)
            case _:
                raise InvalidRequestError(f"'{param}' has both content and text; send one.", param=param)
        own_instruction = _checked_instruction(item.instruction, param=f"{param}.instruction")
        if item.input_type is None:
            instruction = own_instruction if own_instruction is not None else self.defaults.instruction
            return self._of_text(
                text, param=field, prompt_name=self.defaults.prompt_name, instruction=instruction, is_own=True
            )
        # What the item says of itself goes before the request's instruction, which was meant for the others.
        prompt_name = choose_prompt(item.input_type, prompts=self.info.prompts, param=f"{param}.input_type")
        return self._of_text(
            text, param=field, prompt_name=prompt_name, instruction=own_instruction, is_own=True
        )

    def _of_list(self, elements: list[int | Part], *, param: str) -> EmbeddingInput:
        token_ids = [element for element in elements if isinstance(element, int)]
        parts = [element for element in elements if not isinstance(element, int)]
        if token_ids and parts:
            raise InvalidRequestError(f"'{param}' mixes token ids and content parts.", param=param)
        if parts:
            return self._of_text(_joined_text(parts, param=param), param=param)
        match self.token_encoding:
            case TokenIds.CL100K_BASE:
                return self._of_text(self._decoded(token_ids, param=param), param=param)
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


def _joined_text(parts: Sequence[Part], *, param: str) -> str:
    """The text of content parts, a line each, as chat templates put them (vLLM, llama.cpp)."""
    texts: list[str] = []
    for index, part in enumerate(parts):
        if not isinstance(part, TextPart):
            raise unsupported_modality(f"{param}[{index}]")
        texts.append(part.text)
    return "\n".join(texts)


def _invalid_token_id(what: str, *, param: str) -> TokenArrayError:
    return TokenArrayError(
        f"'{param}': {what}. {LANGCHAIN_HINT}", param=param, code="invalid_token_id", outcome="invalid_id"
    )
