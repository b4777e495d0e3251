"""Whatever a client sends, it gets a 4xx in the envelope, and the next request is served."""

import asyncio
import json
import tracemalloc
from time import perf_counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import bodies
from app.bodies import MIN_OUTLINE_BYTES, has_more_outside_strings, outline_of
from app.wire import CreateEmbeddingRequest
from tests.app.fakes import MULTIMODAL, FakeEngine, Gateway, with_settings


def body(fragment: str) -> bytes:
    """A request whose ``input`` is the given JSON text."""
    return b'{"model": "tiny", "input": ' + fragment.encode("utf-8", "surrogatepass") + b"}"


NOT_JSON = "The request body is not valid JSON: "

BAD_BODIES: dict[str, tuple[bytes, str, str | None]] = {
    "empty": (b"", "The request body is empty; it must be a JSON object.", None),
    "truncated": (b'{"model": "tiny"', NOT_JSON + "input data was truncated.", None),
    "truncated in a string": (b'{"model": "ti', NOT_JSON + "input data was truncated.", None),
    "byte order mark": (
        b'\xef\xbb\xbf{"model": "tiny", "input": "a"}',
        NOT_JSON + "invalid character (byte 0).",
        None,
    ),
    "trailing junk": (
        body('"a"') + b" x",
        NOT_JSON + "trailing characters (byte 33).",
        None,
    ),
    "gzip": (b"\x1f\x8b\x08\x00", NOT_JSON + "invalid character (byte 0).", None),
    "NaN": (body("[NaN]"), NOT_JSON + "invalid character (byte 28).", None),
    "lone surrogate": (
        body('"\\ud800 and more"'),
        NOT_JSON + "a surrogate escape (\\ud800 to \\udfff) has no partner (byte 34).",
        None,
    ),
    **{
        f"lone surrogate before {after!r}": (
            body(f'"{half}{after}"'),
            NOT_JSON + f"a surrogate escape (\\ud800 to \\udfff) has no partner{where}.",
            None,
        )
        for half, after, where in (
            ("\\ud800", "", ""),
            ("\\\\\\uDBFF", " x", ""),
            ("\\ud800", "\\u0041", " (byte 40)"),
            ("\\udc00", "", " (byte 34)"),
        )
    },
    **{
        f"cut off after {end}": (b'{"input": "' + end.encode(), NOT_JSON + "input data was truncated.", None)
        for end in ("\\ud83d", "\\ud83d\\", "\\ud83d\\ude0", "\\\\ud800 x")
    },
    "null": (b"null", "The request body is not as it should be: expected object, got null.", None),
    "list": (b"[]", "The request body is not as it should be: expected object, got array.", None),
    "string": (b'"a"', "The request body is not as it should be: expected object, got string.", None),
    "nested 100,000 deep": (
        body("[" * 100_000 + "]" * 100_000),
        "Invalid value for 'input[0][0]': expected integer or object, got array.",
        "input[0][0]",
    ),
    "nested 100,000 deep in an unknown field": (
        b'{"model": "tiny", "input": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "The request body is nested too deeply.",
        None,
    ),
    "invalid UTF-8": (
        b'{"model": "tiny", "input": "\xff\xfe"}',
        "The request body is not valid UTF-8: invalid start byte.",
        None,
    ),
    "surrogate as UTF-8": (
        body('"\ud800"'),
        "The request body is not valid UTF-8: invalid continuation byte.",
        None,
    ),
    "1e400": (body("[1e400]"), "Invalid value for 'input[0]': number out of range.", "input[0]"),
    "a 5000-digit number": (
        body("[" + "9" * 5000 + "]"),
        "Invalid value for 'input[0]': integer value out of range.",
        "input[0]",
    ),
    "no model": (b'{"input": "a"}', "Missing required parameter: 'model'.", "model"),
    "no input": (b'{"model": "tiny"}', "Missing required parameter: 'input'.", "input"),
    "input null": (
        body("null"),
        "Invalid value for 'input': expected string, object or array, got null.",
        "input",
    ),
    "input a number": (
        body("5"),
        "Invalid value for 'input': expected string, object or array, got integer.",
        "input",
    ),
    "input of booleans": (
        body("[true]"),
        "Invalid value for 'input[0]': expected integer, string, object or array, got boolean.",
        "input[0]",
    ),
    "input of fractions": (
        body("[1, 2.5]"),
        "Invalid value for 'input[1]': expected integer, string, object or array, got number.",
        "input[1]",
    ),
    "empty list": (body("[]"), "'input' is empty; send at least one input.", "input"),
    "empty string": (body('""'), "'input' is an empty string.", "input"),
    "empty string in a list": (body('["a", ""]'), "'input[1]' is an empty string.", "input[1]"),
    "empty list in a list": (body('["a", []]'), "'input[1]' is an empty list.", "input[1]"),
    "too many inputs": (
        body("[" + ",".join(['"a"'] * 2049) + "]"),
        "'input' holds 2049 inputs; one request may hold 2048 (max_inputs).",
        "input",
    ),
    "a bare id among texts": (
        body('["a", 5]'),
        "'input[1]' is a bare token id among other inputs; put a token array into a list of its own.",
        "input[1]",
    ),
    "ids and parts in one": (
        body('[[5, {"type": "text", "text": "a"}]]'),
        "'input[0]' mixes token ids and content parts.",
        "input[0]",
    ),
    "strings in a token array": (
        body('[[5, "a"]]'),
        "Invalid value for 'input[0][1]': expected integer or object, got string.",
        "input[0][1]",
    ),
    "dimensions as text": (
        b'{"model": "tiny", "input": "a", "dimensions": "12"}',
        "Invalid value for 'dimensions': expected integer, number or null, got string.",
        "dimensions",
    ),
    "dimensions with a point": (
        b'{"model": "tiny", "input": "a", "dimensions": 4.0}',
        "Invalid value for 'dimensions': expected integer, got number.",
        "dimensions",
    ),
    "dimensions true": (
        b'{"model": "tiny", "input": "a", "dimensions": true}',
        "Invalid value for 'dimensions': expected integer, number or null, got boolean.",
        "dimensions",
    ),
    "unknown encoding format": (
        b'{"model": "tiny", "input": "a", "encoding_format": "int8"}',
        "Invalid value for 'encoding_format': 'int8'. Allowed: float, base64.",
        "encoding_format",
    ),
    "a huge encoding format": (
        b'{"model": "tiny", "input": "a", "encoding_format": "' + b"x" * 1_000_000 + b'"}',
        f"Invalid value for 'encoding_format': '{'x' * 63}…'. Allowed: float, base64.",
        "encoding_format",
    ),
    "a huge field in an item": (
        body('[{"' + "x" * 1_000_000 + '": "a"}]'),
        f"Unknown parameter: 'input[0].{'x' * 54}…'.",
        f"input[0].{'x' * 64}",
    ),
    **{
        f"{name} of 401 digits": (
            f'{{"model": "tiny", "input": "a", "{name}": 1{"0" * 400}}}'.encode(),
            f"Invalid value for '{name}': expected integer <= 9223372036854775807.",
            name,
        )
        for name in ("timeout_ms", "dimensions", "priority", "truncate_prompt_tokens")
    },
    "a token id of 401 digits": (
        body("[[1, 1" + "0" * 400 + "]]"),
        "Invalid value for 'input[0][1]': expected integer <= 9223372036854775807.",
        "input[0][1]",
    ),
    "millions of empty lists": (
        body("[" + "[]," * 5_000_000 + "[]]"),
        "The request body holds more than 431072 JSON values; one request may hold 2048 inputs (max_inputs) "
        "and 300000 tokens (max_request_tokens).",
        None,
    ),
    "millions of strings": (
        b'{"model": "tiny", "input": "a", "x": [' + b'"",' * 5_000_000 + b'""]}',
        "The request body holds more than 431072 JSON values; one request may hold 2048 inputs (max_inputs) "
        "and 300000 tokens (max_request_tokens).",
        None,
    ),
    "messages beside input": (
        b'{"model": "tiny", "input": "a", "messages": [{"role": "user", "content": "a"}]}',
        "'input' and 'messages' both say what to embed; send one of them.",
        "messages",
    ),
    "messages that are text": (
        b'{"model": "tiny", "messages": "a"}',
        "Invalid value for 'messages': expected array or null, got string.",
        "messages",
    ),
    "a message without a role": (
        b'{"model": "tiny", "messages": [{"content": "a"}]}',
        "Missing required parameter: 'messages[0].role'.",
        "messages[0].role",
    ),
    "messages nested 100,000 deep": (
        b'{"model": "tiny", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "Invalid value for 'messages[0][0]': expected object, got array.",
        "messages[0][0]",
    ),
    "a message nested 100,000 deep as input": (
        body('[{"role": "user", "content": ' + "[" * 100_000 + "]" * 100_000 + "}]"),
        "Unknown parameter: 'input[0].role'. Chat messages are an input only in a list where every element is "
        "one, as one vector for all of them; or send 'messages'.",
        "input[0].role",
    ),
    "a role that is a number as input": (
        body('[{"role": 5, "content": "a"}]'),
        "Invalid value for 'input[0].role': expected string, got integer.",
        "input[0].role",
    ),
    "a wrong field beside a conversation as input": (
        body('[{"content": "a", "role": "user"}]')[:-1] + b', "dimensions": "12"}',
        "Invalid value for 'dimensions': expected integer, number or null, got string.",
        "dimensions",
    ),
    "unknown field in an item": (
        body('[{"txet": "a"}]'),
        "Unknown parameter: 'input[0].txet'.",
        "input[0].txet",
    ),
    "bare parts": (
        body('[{"type": "text", "text": "a"}]'),
        "Unknown parameter: 'input[0].type'. A content part is no input by itself. One vector for all of them "
        'together: "input": [{"content": [...]}]. One vector each: "input": [{"text": "..."}, '
        '{"image": "..."}].',
        "input[0].type",
    ),
    "an image as OpenAI's chat spells it": (
        body('[{"image": {"url": "https://example.org/a.png"}}]'),
        "Invalid value for 'input[0].image': expected string or null, got object. An image is a string: a URL, "
        "a data URI or base64.",
        "input[0].image",
    ),
    "images in a list": (
        body('[{"image": ["aGFsbG8=", "aGFsbG8="]}]'),
        "Invalid value for 'input[0].image': expected string or null, got array. One vector for several "
        'images: {"content": [{"type": "image", "image": "..."}, ...]}. One vector each: an item each.',
        "input[0].image",
    ),
    "a message among texts": (
        body('[{"role": "user", "content": "a"}, "b"]'),
        "Unknown parameter: 'input[0].role'. Chat messages are an input only in a list where every element is "
        "one, as one vector for all of them; or send 'messages'.",
        "input[0].role",
    ),
    "a message alone": (
        body('{"role": "user", "content": "a"}'),
        "Unknown parameter: 'input.role'. Chat messages are an input only in a list where every element is "
        "one, as one vector for all of them; or send 'messages'.",
        "input.role",
    ),
    "an unknown part": (
        body('[[{"type": "video", "video": "a"}]]'),
        "Invalid value for 'input[0][0].type': 'video'. Allowed: text, image_url, image_base64, image, "
        "input_image.",
        "input[0][0].type",
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_the_clients_mistake_and_harms_nobody_else(name: str):
    """Each of these was a 500 in some server, or was embedded in silence."""
    gateway = Gateway()
    raw, message, param = BAD_BODIES[name]

    answer = await gateway.post("/v1/embeddings", raw)

    assert (answer.status, answer.error["message"], answer.error["param"]) == (400, message, param)
    assert answer.error["type"] == "invalid_request_error"
    assert gateway.engine.calls == []
    assert (await gateway.embed("a")).status == 200


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**63, 2**64, 1000])
@pytest.mark.parametrize("encoding", ["model", "cl100k_base"])
async def test_a_token_id_outside_of_the_vocabulary_never_reaches_the_model(token_id: int, encoding: str):
    """On CUDA it would be a device-side assert, which takes every other request with it."""
    gateway = Gateway()
    if (token_id, encoding) == (1000, "cl100k_base"):
        token_id = 100_256

    answer = await gateway.embed([[1, token_id]], token_encoding=encoding)

    assert answer.status == 400
    assert answer.error["param"] in ("input[0]", "input[0][1]")
    if answer.error["code"] is not None:
        assert answer.error["code"] == "invalid_token_id"
        assert answer.error["message"].endswith(
            "LangChain sends strings with check_embedding_ctx_length=False."
        )
    assert gateway.engine.calls == []


async def test_a_body_over_the_limit_is_refused_and_the_limit_is_named():
    """A bare 413 sends people to search their proxies."""
    gateway = Gateway(settings=with_settings(server={"max_body_bytes": 100}))

    announced = await gateway.request(
        "POST", "/v1/embeddings", body('"a"'), headers={"content-length": "101"}
    )
    streamed = await gateway.request("POST", "/v1/embeddings", [b"x" * 60, b"x" * 60])

    for answer in (announced, streamed):
        assert answer.status == 413
        assert answer.error == {
            "message": "The request body is larger than 100 bytes, the limit set by max_body_bytes.",
            "type": "invalid_request_error",
            "param": None,
            "code": "payload_too_large",
        }


@pytest.mark.parametrize(
    "text",
    ["a, b, c: " * 500_000, '"a", ' * 500_000, "\\\\" * 500_000 + ', "' * 500_000, "\\" + '\\",' * 500_000],
    ids=["prose", "quoted", "backslashes", "escaped quotes"],
)
async def test_commas_and_colons_of_a_text_are_no_values(text: str):
    """A list of numbers in prose is a text like any other, whatever the limit on JSON values."""
    gateway = Gateway(settings=with_settings(limits={"max_input_chars": len(text)}))
    answer = await gateway.embed([text], nobody_knows=1)
    assert answer.status == 200
    assert answer.headers["x-ignored-params"] == "nobody_knows"


@pytest.mark.parametrize(
    ("text", "num_commas"),
    [
        (b"[1,2,3]", 2),
        (rb'["a,b",""," ,",\",1]', 3),
        (rb'["\",",\"", "," ]', 2),
        (b'{"a":1,"b,":[",",{}]}', 2),
    ],
)
def test_marks_are_counted_between_strings_only(text: bytes, num_commas: int):
    padding = b"," * 10  # inside one more string: the plain count must never settle it
    padded = b'["' + padding + b'",' + text + b"]"
    assert has_more_outside_strings(padded, b",", num_commas)
    assert not has_more_outside_strings(padded, b",", max(num_commas + 1, padded.count(b'"')))


async def test_a_body_of_very_many_keys_is_not_searched_for_unknown_ones():
    """Naming a few of half a million keys would take longer than the request."""
    answer = await Gateway().embed("a", **{f"k{number}": 1 for number in range(70_000)})
    assert answer.status == 200
    assert "x-ignored-params" not in answer.headers


def shortened(value: Any) -> Any:
    """The same value with all strings empty, keys excepted."""
    match value:
        case str():
            return ""
        case list():
            return [shortened(one) for one in value]
        case dict():
            return {key: shortened(one) for key, one in value.items()}
        case _:
            return value


TEXTS_OF_JSON = st.text(alphabet=st.sampled_from('ab\\"/:,{}[]\u20ac\n '), max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS_OF_JSON,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS_OF_JSON, children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(value=VALUES, is_ascii=st.booleans(), separators=st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_an_outline_is_the_body_without_its_strings(value: Any, is_ascii: bool, separators: tuple[str, str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MIN_OUTLINE_BYTES", 0)
        patch.setattr(bodies, "LONG_STRING_BYTES", 1)
        body = json.dumps(value, ensure_ascii=is_ascii, separators=separators).encode()
        outline = outline_of(body)
    if outline != body:
        assert json.loads(outline) == shortened(json.loads(body))
    if '"' in json.dumps(value) and "\\" not in json.dumps(value):
        assert outline != body or shortened(value) == value or max_chars(value) < 2


def max_chars(value: Any) -> int:
    match value:
        case str():
            return len(value.encode())
        case list() | dict():
            values = value.values() if isinstance(value, dict) else value
            return max(map(max_chars, values), default=0)
        case _:
            return 0


def test_an_image_is_left_out_of_the_outline_and_an_unknown_key_is_not():
    data = "A" * MIN_OUTLINE_BYTES
    raw = json.dumps({"input": {"image": data}, "k" * 2_000: 1, "user": "u"}).encode()
    assert json.loads(outline_of(raw)) == {"input": {"image": ""}, "k" * 2_000: 1, "user": "u"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"input": "' + b"A" * MIN_OUTLINE_BYTES,
        b'{"input": "' + b"\\" * MIN_OUTLINE_BYTES + b'"}',
        b'{"input": ["' + b'a","' * MIN_OUTLINE_BYTES + b'"]}',
        b'{"input": "' + b'\\"' * MIN_OUTLINE_BYTES + b'"}',
    ],
    ids=["no end", "backslashes", "short strings", "escaped quotes"],
)
def test_a_body_that_is_not_worth_it_is_its_own_outline(raw: bytes):
    """And that is found out at once: 0.3 MB take no second, whatever they are made of."""
    started_s = perf_counter()
    assert outline_of(raw) == raw
    assert perf_counter() - started_s < 0.2


async def test_commas_in_an_image_are_no_flood_and_those_beside_it_are():
    gateway = Gateway(settings=with_settings(limits={"max_inputs": 1, "max_request_tokens": 1}))
    commas = "," * MIN_OUTLINE_BYTES
    assert (await gateway.embed(commas)).status == 200
    flood = await gateway.post("/v1/embeddings", {"model": "tiny", "input": [*"a" * 200], "user": commas})
    assert flood.error["code"] == "request_too_large"


async def test_unknown_parameters_beside_an_image_are_named():
    answer = await Gateway().embed("a", user="u" * MIN_OUTLINE_BYTES, temperature=1)
    assert answer.headers["x-ignored-params"] == "temperature"


async def test_a_body_is_not_held_beside_what_it_was_decoded_to():
    """Three images of 16 MB took 188 MB for as long as the model worked on them."""
    engine = FakeEngine(hold=asyncio.Event())
    text = "a" * 2_000_000
    raw = body(f'"{text}"')
    gateway = Gateway(engine, with_settings(limits={"max_input_chars": len(text)}))
    tracemalloc.start()
    try:
        answering = asyncio.create_task(
            gateway.request("POST", "/v1/embeddings", [raw[:1_000_000], raw[1_000_000:]])
        )
        await engine.started.wait()
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert engine.hold is not None
    engine.hold.set()
    assert (await answering).status == 200
    # The two pieces, which belong to the client here, and the text.
    assert 2 * len(text) < num_bytes < 2.5 * len(text)


async def test_the_content_type_does_not_matter():
    """curl sends form data by default; the body says what it is."""
    answer = await Gateway().post(
        "/v1/embeddings", body('"a"'), {"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status == 200


async def test_parameters_nobody_knows_are_ignored_but_named():
    """Clients add keys freely; a header tells a developer which ones did nothing."""
    gateway = Gateway()

    answer = await gateway.embed("a", temperature=1, **{"x\r\ny\u20ac": 2})

    assert answer.status == 200
    assert answer.headers["x-ignored-params"] == "temperature, x??y?"
    assert gateway.sample("laneway_ignored_params_total") == 2


async def test_an_instruction_that_the_model_does_not_read_is_named_before_what_nobody_knows():
    gateway = Gateway(FakeEngine(info_=MULTIMODAL))
    item = {"text": "a", "instruction": "i", "input_type": "document"}

    answer = await gateway.embed([item, "b"], instruction="j", input_type="passage", temperature=1)

    assert answer.status == 200
    assert answer.headers["x-ignored-params"] == "input[0].instruction, instruction, temperature"
    assert gateway.sample("laneway_ignored_params_total") == 1


async def test_the_list_of_ignored_parameters_is_bounded():
    """Headers have a cap of a few kilobytes in every proxy."""
    answer = await Gateway().embed("a", **{f"{'k' * 100}{number:03}": 1 for number in range(50)})

    assert answer.status == 200
    assert answer.headers["x-ignored-params"].endswith(f"{'k' * 64}, and 34 more")
    assert len(answer.headers["x-ignored-params"]) < 1200


async def test_a_request_without_unknown_parameters_has_no_such_header():
    assert "x-ignored-params" not in (await Gateway().embed("a", user="u")).headers


# Hypothesis seldom goes past 128 bits; arithmetic with floats fails from 1024 bits on.
INTEGERS = st.integers() | st.sampled_from([10**400, -(10**400), 2**63, 2**64])
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
FIELDS = CreateEmbeddingRequest.__struct_fields__
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "text": JSON,
        "content": JSON | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": JSON})),
        "image": JSON,
        "input_type": JSON,
        "instruction": JSON,
    },
)
INPUT = JSON | st.lists(st.text() | st.integers() | st.lists(st.integers()) | ITEM, max_size=4) | ITEM


SHARED = Gateway()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given_input=INPUT, fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
async def test_no_request_of_any_shape_is_a_server_error(given_input: Any, fields: dict[str, Any]):
    """A 5xx is retried three times by the SDKs, and wakes somebody up."""
    answer = await SHARED.post("/v1/embeddings", {"model": "tiny", "input": given_input} | fields)
    assert answer.status == 200 or (400 <= answer.status < 500 and answer.error["message"])


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
async def test_no_bytes_are_a_server_error(raw: bytes):
    answer = await SHARED.post("/v1/embeddings", raw)
    assert 400 <= answer.status < 500
    assert answer.error["message"]
