"""From every allowed spelling of ``input`` and ``messages`` to what each vector is made of.

Laws: the number of vectors is never guessed, and nothing that was sent is left out in silence: a spelling
that could mean two things is refused, with the way to say either. Nothing here knows the served model;
whether it can embed what an element holds is asked afterwards. And but for ``text_image``, whose strings say
only at their end what they hold, nothing here looks at an image's base64, which may be 27 MB of a string:
looking for a space in it takes 1.4 ms, an expression over it took 316 ms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from app.data_uris import is_image_uri
from app.errors import InvalidRequestError, quoted
from app.wire import (
    ConversationRequest,
    CreateEmbeddingRequest,
    ImageBase64Part,
    ImagePart,
    ImageURL,
    ImageURLPart,
    InputImagePart,
    Item,
    Message,
    Messages,
    Part,
    TextPart,
)
from app.wire import Element as WireElement
from app.wire import Input as WireInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """Something the client said, and where."""

    text: str
    param: str
    """A path such as ``input[3].content``, or a header. For error messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A text, images, or both. The images come before the text, however they were sent."""

    text: Said | None = None
    images: tuple[Said, ...] = ()
    """Each a URL, a data URI or base64; not looked at yet."""
    ignored: tuple[str, ...] = ()
    """What was said of them that changes nothing, by the client's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """What one vector is made of."""

    param: str
    """What the client calls it: ``input``, ``input[3]``, ``messages``."""
    content: Content | list[int]
    """A list is a token array."""
    instruction: Said | None = None
    """Its own. ``None``: the request's."""
    input_type: Said | None = None
    """Its own. ``None``: the request's."""

    @property
    def images(self) -> tuple[Said, ...]:
        """The images of its content."""
        return self.content.images if isinstance(self.content, Content) else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages that make one vector together."""

    messages: Sequence[Message]


Spelling = str | Item | Conversation | list[int | Part]
"""What stands for one vector. A list is a token array, or content parts."""


# One spelling a vector -------------------------------------------------------------------------------------


def split_request(request: CreateEmbeddingRequest, *, max_inputs: int) -> list[tuple[str, Spelling]]:
    """Sort out the top level: one spelling for each vector, with the client's name for it.

    Raises:
        InvalidRequestError: There is nothing to embed, too much of it, or it is not clear how much.
    """
    param = _top_param(request)
    if isinstance(request, ConversationRequest):
        spellings = _conversations(request.input, param=param)
    elif request.input is not msgspec.UNSET:
        spellings = _inputs(request.input)
    elif isinstance(request.messages, list):
        spellings = _conversations(request.messages, param=param)
    else:
        raise InvalidRequestError("Missing required parameter: 'input'.", param="input")
    if param == "input" and isinstance(request.messages, list):
        raise InvalidRequestError(
            "'input' and 'messages' both say what to embed; send one of them.", param="messages"
        )
    if len(spellings) > max_inputs:
        raise InvalidRequestError(
            f"'{param}' holds {len(spellings)} inputs; one request may hold {max_inputs} (max_inputs).",
            param=param,
        )
    return spellings


def _top_param(request: CreateEmbeddingRequest) -> str:
    """The parameter that says what to embed."""
    return "messages" if request.input is msgspec.UNSET else "input"


def _inputs(given: WireInput) -> list[tuple[str, Spelling]]:
    if not isinstance(given, list):
        return [("input", given)]
    if not given:
        raise InvalidRequestError("'input' is empty; send at least one input.", param="input")
    ids = [element for element in given if isinstance(element, int)]
    if len(ids) == len(given):
        return [("input", [*ids])]
    return [(f"input[{index}]", _one(element, index)) for index, element in enumerate(given)]


def _one(element: WireElement, index: int) -> Spelling:
    if isinstance(element, int):
        param = f"input[{index}]"
        raise InvalidRequestError(
            f"'{param}' is a bare token id among other inputs; put a token array into a list of its own.",
            param=param,
        )
    return element


def _conversations(given: Messages, *, param: str) -> list[tuple[str, Spelling]]:
    """One conversation if all elements are messages, one for each if all are lists of them."""
    if not given:
        raise InvalidRequestError(f"'{param}' is empty; send at least one message.", param=param)
    messages = [element for element in given if isinstance(element, Message)]
    if len(messages) == len(given):
        return [(param, Conversation(messages=messages))]
    conversations = [element for element in given if not isinstance(element, Message)]
    if messages:
        raise InvalidRequestError(
            f"'{param}' mixes messages and lists of messages; send one conversation, or a list of them.",
            param=param,
        )
    return [
        (f"{param}[{index}]", Conversation(messages=messages)) for index, messages in enumerate(conversations)
    ]


# How strings are to be read --------------------------------------------------------------------------------

MODALITIES = ("text", "image", "text_image")


def read_modalities(given: str | list[str] | None, *, num_inputs: int) -> Sequence[str | None]:
    """How each string is to be read, where the client says so: one word for all, or one for each.

    Raises:
        InvalidRequestError: A word is not known, or their number is not that of the inputs.
    """
    if given is None:
        return [None] * num_inputs
    words = [given] * num_inputs if isinstance(given, str) else given
    if len(words) != num_inputs:
        raise InvalidRequestError(
            f"'modality' has {len(words)} values for {num_inputs} inputs.", param="modality"
        )
    for word in words:
        if word not in MODALITIES:
            raise InvalidRequestError(
                f"{quoted(word)} is not a modality. Allowed: {', '.join(MODALITIES)}.", param="modality"
            )
    return words


_DATA_URI_START = "data:image/"
_WHITE_SPACE = " \t\r\n\f\v"


def _of_string(text: str, *, param: str, modality: str | None) -> Content:
    said = Said(text=text, param=param)
    match modality:
        case "text":
            return Content(text=said)
        case "image":
            return Content(images=(said,))
        case "text_image":
            return _text_before_image(said)
        case _:
            # What begins as an image was meant to be one: broken, it is refused as one, and is never a text.
            return Content(images=(said,)) if is_image_uri(text) else Content(text=said)


def _text_before_image(said: Said) -> Content:
    """Split a text from the data URI behind it, as NVIDIA's clients join them: with a space or a line break.

    (nv-ingest and nemo-retriever, ``_format_text_image_pair_input_string``.)
    """
    start = said.text.rfind(_DATA_URI_START)
    uri = said.text[start:].rstrip()
    if start < 0 or any(space in uri for space in _WHITE_SPACE):
        raise InvalidRequestError(
            f"'{said.param}' must end in an image's data URI, as its modality text_image says.",
            param=said.param,
        )
    text = said.text[:start].rstrip()
    return Content(
        text=Said(text=text, param=said.param) if text else None, images=(Said(text=uri, param=said.param),)
    )


# What one vector is made of --------------------------------------------------------------------------------


def read_element(spelling: Spelling, *, param: str, modality: str | None) -> Element:
    """Read what stands for one vector.

    Args:
        spelling: What the client sent.
        param: What the client calls it.
        modality: How strings are to be read, where the client says so. Items and parts say it themselves.

    Raises:
        InvalidRequestError: It says nothing, or two things.
    """
    match spelling:
        case str():
            return Element(param=param, content=_of_string(spelling, param=param, modality=modality))
        case Item():
            return _without_images_if_text(_of_item(spelling, param=param, modality=modality), modality)
        case Conversation():
            conversation = _of_conversation(spelling.messages, param=param, modality=modality)
            return _without_images_if_text(conversation, modality)
        case []:
            raise InvalidRequestError(f"'{param}' is an empty list.", param=param)
        case _:
            element = Element(param=param, content=_of_list(spelling, param=param, modality=modality))
            return _without_images_if_text(element, modality)


def _without_images_if_text(element: Element, modality: str | None) -> Element:
    """Refuse images in what its modality calls a text; otherwise inputs say themselves what they hold."""
    if modality == "text" and element.images:
        raise InvalidRequestError(
            f"'{element.images[0].param}' is an image; its modality says text. Leave modality out where "
            "inputs say themselves what they hold.",
            param="modality",
        )
    return element


def _of_item(item: Item, *, param: str, modality: str | None) -> Element:
    return Element(
        param=param,
        content=_content_of_item(item, param=param, modality=modality),
        instruction=_said(item.instruction, f"{param}.instruction"),
        input_type=_said(item.input_type, f"{param}.input_type"),
    )


def _said(text: str | None, param: str) -> Said | None:
    return None if text is None else Said(text=text, param=param)


def _content_of_item(item: Item, *, param: str, modality: str | None) -> Content:
    if item.content is not None:
        for other, value in (("text", item.text), ("image", item.image)):
            if value is not None:
                raise InvalidRequestError(f"'{param}' has both content and {other}; send one.", param=param)
        _refuse_no_parts(item.content, param=f"{param}.content")
        return _of_string_or_parts(item.content, param=f"{param}.content", modality=modality)
    text = _said(item.text, f"{param}.text")
    if item.image is None:
        if text is None:
            raise InvalidRequestError(f"'{param}' has neither content nor text nor image.", param=param)
        return Content(text=text)
    # An empty text beside an image changes nothing; clients with a fixed form send it.
    return Content(text=text if item.text else None, images=(Said(text=item.image, param=f"{param}.image"),))


def _of_list(elements: list[int | Part], *, param: str, modality: str | None) -> Content | list[int]:
    token_ids = [element for element in elements if isinstance(element, int)]
    parts = [element for element in elements if not isinstance(element, int)]
    if token_ids and parts:
        raise InvalidRequestError(f"'{param}' mixes token ids and content parts.", param=param)
    if parts:
        return _of_parts(parts, param=param)
    if modality not in (None, "text"):
        raise InvalidRequestError(
            f"'{param}' holds token ids, which stand for a text; its modality says {modality}.",
            param="modality",
        )
    return token_ids


def _of_string_or_parts(content: str | list[Part], *, param: str, modality: str | None) -> Content:
    if isinstance(content, str):
        return _of_string(content, param=param, modality=modality)
    return _of_parts(content, param=param)


def _refuse_no_parts(content: str | list[Part], *, param: str) -> None:
    if content == []:
        raise InvalidRequestError(f"'{param}' is an empty list; send at least one part.", param=param)


def _of_parts(parts: Sequence[Part], *, param: str) -> Content:
    """The images, and the texts joined to one, a line each, as chat templates put them (vLLM, llama.cpp)."""
    text = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    images = tuple(
        Said(text=_image_of(part), param=f"{param}[{index}]")
        for index, part in enumerate(parts)
        if not isinstance(part, TextPart)
    )
    return Content(
        text=Said(text=text, param=param) if text or not images else None,
        images=images,
        ignored=tuple(
            f"{param}[{index}].image_url.detail"
            for index, part in enumerate(parts)
            if isinstance(part, ImageURLPart) and _wants_detail(part.image_url)
        ),
    )


def _wants_detail(place: str | ImageURL) -> bool:
    """Whether another resolution was asked for than the model's own: ``low`` or ``high`` at OpenAI."""
    return isinstance(place, ImageURL) and place.detail not in (None, "auto")


def _image_of(part: ImageURLPart | ImageBase64Part | ImagePart | InputImagePart) -> str:
    match part:
        case ImageURLPart(image_url=place) | InputImagePart(image_url=place):
            return place.url if isinstance(place, ImageURL) else place
        case ImageBase64Part(image_base64=data):
            return data
        case ImagePart(image=image):
            return image


# Conversations ---------------------------------------------------------------------------------------------

_INSTRUCTION_ROLES = ("system", "developer")  # the second is OpenAI's newer word for the first


def _of_conversation(messages: Sequence[Message], *, param: str, modality: str | None) -> Element:
    """Read a conversation: at most an instruction, then one user message, then the start of an answer.

    An embedding prompt has room for these and for no more; a second question, or an answer with words in it,
    would have to be dropped or passed off as something else. The answer without words is what vLLM's clients
    send to models whose prompt ends there (Qwen3-VL-Embedding, with ``continue_final_message``).
    """
    if not messages:
        raise InvalidRequestError(f"'{param}' is an empty list.", param=param)
    turns = [(f"{param}[{index}]", message) for index, message in enumerate(messages)]
    instruction = None
    if turns[0][1].role in _INSTRUCTION_ROLES:
        instruction = _of_system(turns[0][1], param=turns[0][0])
        turns = turns[1:]
    if len(turns) > 1 and turns[-1][1].role == "assistant" and _is_silent(turns[-1][1]):
        turns = turns[:-1]
    stray = next((turn for turn in turns if turn[1].role != "user"), None)
    if stray is not None:
        raise _no_place_for(stray[1], param=stray[0])
    if len(turns) != 1:
        what = "no user message" if not turns else f"{len(turns)} user messages"
        raise InvalidRequestError(
            f"'{param}' holds {what}; a vector is made of exactly one. For a vector each, send a list of "
            "conversations.",
            param=param,
        )
    [(user_param, user)] = turns
    _refuse_no_parts(user.content, param=f"{user_param}.content")
    content = _of_string_or_parts(user.content, param=f"{user_param}.content", modality=modality)
    return Element(param=param, content=content, instruction=instruction)


def _of_system(message: Message, *, param: str) -> Said:
    content = _of_string_or_parts(message.content, param=f"{param}.content", modality="text")
    if content.images:
        raise InvalidRequestError(
            f"'{content.images[0].param}' is an image; a {quoted(message.role)} message is the instruction, "
            "and holds text only.",
            param=content.images[0].param,
        )
    assert content.text is not None, "content without images is a text"
    return content.text


def _is_silent(message: Message) -> bool:
    content = _of_string_or_parts(message.content, param="", modality="text")
    return content.text is not None and not content.text.text and not content.images


def _no_place_for(message: Message, *, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"'{param}' has the role {quoted(message.role)}, which has no place here: a vector is made of one "
        "'user' message, with a 'system' message before it as its instruction.",
        param=param,
    )
