"""Reading a request's body: one strict pass over the raw bytes, straight into the wire struct.

Litestar's own way decodes to builtins and then converts leniently, which takes ``"dimensions": "12"`` for 12.
Decoding stays on the event loop: msgspec holds the interpreter lock for the whole call, so a thread would
free nobody. What it costs is bounded instead, by ``max_body_bytes`` and by a law of this file: no body
becomes more Python objects than a valid request could hold. 2 MB of texts take 1.3 ms, 64 MiB of text at
most half a second; the same bytes as empty lists would be 12 s and 1.5 GB. What is asked of a body beside its
decoding is asked of its outline, which leaves out what stands in long strings.
"""

import functools
import re
from collections.abc import Generator
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.dto import AbstractDTO, DTOConfig
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from app.errors import ClientGoneError, InvalidRequestError, quoted, shortened
from app.services import services_of
from app.settings import LimitSettings
from app.wire import ConversationRequest, CreateEmbeddingRequest, Part

T = TypeVar("T")
Connection = ASGIConnection[Any, Any, Any, Any]

VALUES_PER_INPUT = 64
"""JSON values that an input may be written in: an item and its fields, a few dozen content parts."""
MAX_KEYS = 65_536
"""Bodies with more colons outside of their strings are not searched for unknown parameters."""
MIN_OUTLINE_BYTES = 256 * 1024
"""Smaller bodies are their own outline."""
LONG_STRING_BYTES = 1024
MAX_NAMED_PARAMS = 16
"""Unknown parameters that ``x-ignored-params`` names; the rest are only counted."""


class StrictJSON(AbstractDTO[T]):
    """Decodes a body into ``T`` strictly, and shows ``T`` as it is in the OpenAPI document."""

    config = DTOConfig()

    def decode_bytes(self, value: bytes) -> Any:
        """Decode a body.

        Raises:
            InvalidRequestError: It is not JSON, not of the right shape, or of far too many values.
        """
        request = cast("GatewayRequest", self.asgi_connection)
        outline = outline_of(value)
        refuse_floods(outline, services_of(request).settings.limits)
        decoded = self.decode(value)
        request.keep_outline(outline)
        return decoded

    def decode(self, body: bytes) -> Any:
        """Decode a body that is no flood.

        Raises:
            InvalidRequestError: As in ``decode_bytes``.
        """
        return decode_body(body, self.model_type)

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Build nothing: there is no transfer model between the bytes and ``T``."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Reference | Schema:
        """The schema of ``T`` itself, in which ``required_params`` are required."""
        schema: Reference | Schema = schema_creator.for_field_definition(field_definition)
        if isinstance(schema, Reference):
            shown: Schema = schema_creator.schema_registry.from_reference(schema).schema
            shown.required = sorted(field_definition.annotation.required_params)
        return schema

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        """No fields: see ``create_for_field_definition``."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """No nested fields either."""
        return False


class EmbeddingJSON(StrictJSON[CreateEmbeddingRequest]):
    """Decodes a body whose ``input`` may also hold chat messages."""

    def decode(self, body: bytes) -> CreateEmbeddingRequest:
        """Decode it.

        Raises:
            InvalidRequestError: As in ``decode_bytes``.
        """
        return decode_embedding_request(body)


class GatewayRequest(Request[Any, Any, Any]):
    """A request whose body is there, or an error that says why it is not."""

    outline: bytes = b""
    """The body without what stands in its long strings, as soon as it has been decoded."""

    def keep_outline(self, outline: bytes) -> None:
        """Keep this of the body, and forget the rest: what was in it lives on in what it was decoded to."""
        self.outline = outline
        self._body = self._connection_state.body = b""

    async def body(self) -> bytes:
        """Read the whole body, at most ``max_body_bytes`` of it.

        Raises:
            InvalidRequestError: It is empty, or was forgotten.
            ClientGoneError: The client went away while sending it.
        """
        try:
            body = await super().body()
        except InternalServerException as error:
            # What Litestar 2.25 raises for `http.disconnect`; a client that left is no fault of ours.
            raise ClientGoneError from error
        if not body:
            raise InvalidRequestError("The request body is empty; it must be a JSON object.")
        return body


def outline_of(body: bytes) -> bytes:
    """A body whose long strings are empty, keys excepted; JSON wherever the body is.

    A body of a few long strings, such as images, is looked through once, from quote to quote: 27 million
    characters of base64 take 2 ms. One of many short strings is its own outline: it is found out after as
    many quotes as it has kilobytes.
    """
    if len(body) < MIN_OUTLINE_BYTES:
        return body
    kept: list[bytes] = []
    kept_to = position = 0
    opening: int | None = None
    for _ in range(len(body) // LONG_STRING_BYTES):
        quote = body.find(b'"', position)
        if quote < 0:
            kept.append(body[kept_to:])
            return b"".join(kept)
        position = quote + 1
        if opening is None:
            opening = quote
            continue
        before = body[max(quote - 64, 0) : quote]
        num_backslashes = len(before) - len(before.rstrip(b"\\"))
        if num_backslashes == len(before):
            return body  # more of them than anybody means
        if num_backslashes % 2:
            continue
        is_key = body[position : position + 64].lstrip().startswith(b":")
        if quote - opening > LONG_STRING_BYTES and not is_key:
            kept.append(body[kept_to : opening + 1])
            kept_to = quote
        opening = None
    return body


def refuse_floods(outline: bytes, limits: LimitSettings) -> None:
    """Refuse a body of more JSON values than any valid request has, before it becomes Python objects.

    Raises:
        InvalidRequestError: There are more commas than the limits' token ids and inputs can explain.
    """
    max_values = limits.max_request_tokens + VALUES_PER_INPUT * limits.max_inputs
    if has_more_outside_strings(outline, b",", max_values):
        raise InvalidRequestError(
            f"The request body holds more than {max_values} JSON values; one request may hold "
            f"{limits.max_inputs} inputs (max_inputs) and {limits.max_request_tokens} tokens "
            "(max_request_tokens).",
            code="request_too_large",
        )


def has_more_outside_strings(body: bytes, mark: bytes, limit: int) -> bool:
    """Whether ``mark`` stands more than ``limit`` times between the strings of a JSON text.

    Nearly every body is settled by the first line (0.7 ms for 2 MB of texts). Strings may hold the mark, too,
    so a body that is not is taken apart (0.3 s for 64 MiB). More strings than ``limit`` are over it as well:
    each of them is a value or a key.
    """
    if body.count(mark) <= limit:
        return False
    # Backslashes first: what is left of `\\"` is a quote that ends its string.
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * limit:
        return True
    return sum(outside.count(mark) for outside in unescaped.split(b'"')[::2]) > limit


def decode_body(body: bytes, model_type: type[T]) -> T:
    """Decode a body strictly.

    Raises:
        InvalidRequestError: With the path of what is wrong in it as ``param``.
    """
    try:
        return _decoder(model_type).decode(body)
    except msgspec.ValidationError as error:
        raise _shape_error(str(error), model_type) from None
    except msgspec.DecodeError as error:
        what = _syntax_error(str(error), body)
        raise InvalidRequestError(f"The request body is not valid JSON: {what}.") from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"The request body is not valid UTF-8: {error.reason}.") from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply.") from None


def decode_embedding_request(body: bytes) -> CreateEmbeddingRequest:
    """Decode the body of an embedding request, by its second type where the first does not fit.

    Raises:
        InvalidRequestError: With the path of what is wrong in it as ``param``.
    """
    try:
        return decode_body(body, CreateEmbeddingRequest)
    except InvalidRequestError:
        if not _has_messages_as_input(body):
            raise
    return decode_body(body, ConversationRequest)


class _HasRole(msgspec.Struct):
    role: msgspec.Raw


class _MessagesAsInput(msgspec.Struct):
    """A body whose ``input`` is a list of objects that all have a role, or of lists of them."""

    input: list[_HasRole | list[_HasRole]]


def _has_messages_as_input(body: bytes) -> bool:
    try:
        _decoder(_MessagesAsInput).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


@functools.cache
def _decoder(model_type: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(model_type)


_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def ignored_params(outline: bytes, model_type: type[msgspec.Struct]) -> tuple[str, ...]:
    """Name the top-level keys that the struct does not know, in the order the client sent them.

    A second pass, over the keys alone; a body of very many keys is spared it, and none are named.
    """
    if has_more_outside_strings(outline, b":", MAX_KEYS):
        return ()
    return tuple(key for key in _keys_decoder.decode(outline) if key not in model_type.__struct_fields__)


def ignored_params_header(names: tuple[str, ...]) -> str:
    """The names as one header value: harmless characters only, and a bounded number of bounded names."""
    shown = [re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:64]) for name in names[:MAX_NAMED_PARAMS]]
    hidden = len(names) - len(shown)
    return ", ".join(shown) + (f", and {hidden} more" if hidden else "")


# From msgspec's words to OpenAI's --------------------------------------------------------------------------

_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)

_PART_HINT = (
    "A content part is no input by itself. One vector for all of them together: "
    '"input": [{"content": [...]}]. One vector each: "input": [{"text": "..."}, {"image": "..."}].'
)
_MESSAGES_HINT = (
    "Chat messages are an input only in a list where every element is one, as one vector for all of them; or "
    "send 'messages'."
)
HINTS = {
    "type": _PART_HINT,
    "image_url": _PART_HINT,
    "image_base64": _PART_HINT,
    "role": _MESSAGES_HINT,
}
"""What a client probably meant that put such a field straight into an item of ``input``."""

_ELEMENT = re.compile(r"^input(\[\d+\])?$")

_IMAGE_HINTS = {
    "object": "An image is a string: a URL, a data URI or base64.",
    "array": 'One vector for several images: {"content": [{"type": "image", "image": "..."}, ...]}. One '
    "vector each: an item each.",
}
"""By what was sent as ``image`` in an item instead of a string."""
_ITEM_IMAGE = re.compile(r"^input(\[\d+\])?\.image$")


_HALF_PAIR = re.compile(
    # Half a surrogate pair that something else follows than its other half, or the start of one at the end.
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})(?!(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z)"
)


def _syntax_error(text: str, body: bytes) -> str:
    """What is no JSON in a body, where msgspec (0.22) does not say so itself.

    It takes half a surrogate pair for the end of the body where less than a whole escape follows.
    """
    is_truncated = text == "Input data was truncated"
    if "surrogate" in text or (is_truncated and _HALF_PAIR.search(body.replace(rb"\\", b""))):
        where = re.search(r" \(byte \d+\)$", text)
        return "a surrogate escape (\\ud800 to \\udfff) has no partner" + (where[0] if where else "")
    return _uncapitalised(text.removeprefix("JSON is malformed: "))


_EXPECTED = re.compile(r"^Expected `(?P<expected>[^`]*)`(?P<bound>[^`]*)(?:`(?P<got>[^`]*)`)?$")
_JSON_WORDS = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def _in_json_words(text: str) -> str:
    """``Expected `int | null`, got `str` `` as somebody would say it who knows JSON and not Python."""
    match = _EXPECTED.match(text)
    if match is None:
        return _uncapitalised(text)
    names = [_JSON_WORDS.get(name, name) for name in match["expected"].split(" | ")]
    expected = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"expected {expected}{match['bound']}{_JSON_WORDS.get(match['got'], match['got'] or '')}"


_NO_MEMBER = re.compile(r"^Invalid (?:enum )?value (?P<given>'.*')$", re.DOTALL)


def _allowed_values(model_type: type[Any], path: str) -> tuple[str, ...]:
    """The words that the field at ``path`` may hold."""
    if path.endswith(".type"):
        return tuple(str(part.__struct_config__.tag) for part in get_args(Part))
    hint = get_type_hints(model_type)[path]
    return tuple(word for arm in get_args(hint) if get_origin(arm) is Literal for word in get_args(arm))


def _shape_error(text: str, model_type: type[Any]) -> InvalidRequestError:
    """Translate a msgspec message (0.22): its path becomes ``param``, the rest is said in OpenAI's words."""
    at = _PATH.search(text)
    what = text[: at.start()] if at else text
    path = at["path"].lstrip(".") if at else ""
    if missing := _MISSING.match(what):
        param = _joined(path, missing["field"])
        return InvalidRequestError(f"Missing required parameter: {quoted(param)}.", param=param)
    if unknown := _UNKNOWN.match(what):
        field = unknown["field"]
        param = _joined(path, field[:64])
        hint = HINTS.get(field) if _ELEMENT.match(path) else None
        message = f"Unknown parameter: {quoted(param)}."
        return InvalidRequestError(
            f"{message} {hint}" if hint else message, param=param, code="unknown_field"
        )
    if no_member := _NO_MEMBER.match(what):
        # It is quoted whole, and may be as long as a body.
        given, allowed = quoted(no_member["given"][1:-1]), ", ".join(_allowed_values(model_type, path))
        return InvalidRequestError(
            f"Invalid value for {quoted(path)}: {given}. Allowed: {allowed}.", param=path
        )
    what = _in_json_words(shortened(what))
    if not path:
        return InvalidRequestError(f"The request body is not as it should be: {what}.")
    hint = _IMAGE_HINTS.get(what.rpartition(" ")[2]) if _ITEM_IMAGE.match(path) else None
    message = f"Invalid value for {quoted(path)}: {what}."
    return InvalidRequestError(f"{message} {hint}" if hint else message, param=path)


def _joined(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _uncapitalised(text: str) -> str:
    return text[:1].lower() + text[1:]
