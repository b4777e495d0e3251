"""Every spelling of a text, of an image and of both gives the same input; what could mean two things is refused."""

from dataclasses import replace
from time import perf_counter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bodies import decode_embedding_request
from app.data_uris import is_image_uri
from app.errors import InvalidRequestError
from app.inputs import EmbeddingRequest, parse
from app.settings import Settings
from app.tokens import Cl100k
from batching import Lane
from model import EmbeddingInput, ModelInfo
from tests.app.fakes import INFO, MULTIMODAL, with_settings

WORDS = Cl100k([b"zero ", b"one ", b"two "])
URL = "https://example.org/a.png"
BASE64 = "iVBORw0KGgo="
PIXEL = f"data:image/png;base64,{BASE64}"


def read_body(
    body: dict[str, Any], *, info: ModelInfo = MULTIMODAL, settings: Settings | None = None
) -> EmbeddingRequest:
    return parse(
        decode_embedding_request(msgspec.json.encode({"model": "m", **body})),
        headers={},
        model_input_type=None,
        info=info,
        settings=settings or Settings(),
        cl100k=WORDS,
    )


def read(given: Any, *, info: ModelInfo = MULTIMODAL, **fields: Any) -> EmbeddingRequest:
    return read_body({"input": given, **fields}, info=info)


def contents(request: EmbeddingRequest) -> list[tuple[str | None, list[str]]]:
    """The text of each input, and where each of its images is to come from."""
    references = request.image_references or [()] * len(request.inputs)
    assert len(references) == len(request.inputs) == len(request.params)
    return [
        (one.text, [image.url or (image.data or "")[image.data_start :] for image in images])
        for one, images in zip(request.inputs, references, strict=True)
    ]


def refusal(body: dict[str, Any], **kwargs: Any) -> tuple[str, str | None, str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        read_body(body, **kwargs)
    return caught.value.message, caught.value.param, caught.value.code


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def image_parts(image: str) -> list[dict[str, Any]]:
    """Every spelling of a content part with an image."""
    return [
        {"type": "image_url", "image_url": image},
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "image_url", "image_url": {"url": image, "detail": "high"}},
        {"type": "image_base64", "image_base64": image},
        {"type": "image", "image": image},
        {"type": "input_image", "image_url": image},
    ]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# Spellings of one input


def spellings_of(text: str | None, image: str | None) -> list[Any]:
    """What may stand as one element of ``input`` for this content."""
    texts = [] if text is None else [text_part(text)]
    images = [[]] if image is None else [[part] for part in image_parts(image)]
    part_lists = [[*texts, *one] for one in images] + [[*one, *texts] for one in images]
    fields = {name: value for name, value in (("text", text), ("image", image)) if value is not None}
    return [fields, *part_lists, *({"content": parts} for parts in part_lists)]


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        ("a", None, ("a", [])),
        (None, URL, (None, [URL])),
        (None, PIXEL, (None, [BASE64])),
        (None, BASE64, (None, [BASE64])),
        ("a", URL, ("a", [URL])),
        ("a", PIXEL, ("a", [BASE64])),
    ],
)
def test_the_same_content_is_the_same_input_however_it_is_spelled(
    text: str | None, image: str | None, expected: tuple[str | None, list[str]]
):
    """A client that changes its library must find its old vectors again."""
    for spelling in spellings_of(text, image):
        assert contents(read([spelling])) == [expected], spelling
        bodies: list[dict[str, Any]] = []
        if isinstance(spelling, dict):
            bodies.append({"input": spelling})
        if isinstance(spelling, list):
            bodies += [
                {"messages": [user(spelling)]},
                {"messages": [[user(spelling)]]},
                {"input": [user(spelling)]},
                {"input": [[user(spelling)]]},
            ]
        for body in bodies:
            assert contents(read_body(body)) == [expected], body


@pytest.mark.parametrize(
    ("given", "modality", "expected"),
    [
        (PIXEL, None, (None, [BASE64])),
        (f" DATA:image/JPEG;base64,{BASE64}\n", None, (None, [f"{BASE64}\n"])),
        (f"data:image/png;name=a.png;base64,{BASE64}", None, (None, [BASE64])),
        (PIXEL, "image", (None, [BASE64])),
        (BASE64, "image", (None, [BASE64])),
        (URL, "image", (None, [URL])),
        (PIXEL, "text", (PIXEL, [])),
        (URL, None, (URL, [])),
        (URL, "text", (URL, [])),
        (BASE64, None, (BASE64, [])),
        (f"data:application/octet-stream;base64,{BASE64}", None, (None, [BASE64])),
        (f"data:;base64,{BASE64}", None, (None, [BASE64])),
        ("data:text/plain;base64,YQ==", None, ("data:text/plain;base64,YQ==", [])),
        (f"{PIXEL} is a pixel", None, (None, [f"{BASE64} is a pixel"])),
        (f"{PIXEL} is a pixel", "text", (f"{PIXEL} is a pixel", [])),
        (f"data:image/png;base64,{BASE64[:8]} {BASE64[8:]}", None, (None, [f"{BASE64[:8]} {BASE64[8:]}"])),
        (f"{' ' * 1000}{PIXEL}", None, (None, [BASE64])),
        (
            "data:image/png;base64 is how they begin, most often",
            None,
            ("data:image/png;base64 is how they begin, most often", []),
        ),
        (f"a pixel {PIXEL}", None, (f"a pixel {PIXEL}", [])),
        (f"a pixel {PIXEL}", "text_image", ("a pixel", [BASE64])),
        (f"a pixel\n{PIXEL}\n", "text_image", ("a pixel", [BASE64])),
        (f"data:image/png is a pixel {PIXEL}", "text_image", ("data:image/png is a pixel", [BASE64])),
        (f"\n{PIXEL}", "text_image", (None, [BASE64])),
    ],
)
def test_a_string_is_what_its_modality_says_and_else_a_text_unless_it_is_an_image_as_a_whole(
    given: str, modality: str | None, expected: tuple[str | None, list[str]]
):
    """A URL is a text like any other: pages are embedded that are nothing but one."""
    fields = {} if modality is None else {"modality": modality}
    for body in (
        {"input": given},
        {"input": [given]},
        {"input": {"content": given}},
        {"messages": [user(given)]},
    ):
        assert contents(read_body(body | fields)) == [expected], body


def test_a_text_that_is_called_a_text_is_never_an_image():
    """Somebody who searches source code embeds data URIs, and has said so."""
    for spelling in ({"text": PIXEL}, [text_part(PIXEL)], {"content": [text_part(PIXEL)]}):
        assert contents(read([spelling])) == [(PIXEL, [])]
        assert contents(read([spelling], modality="image")) == [(PIXEL, [])]


@pytest.mark.parametrize(
    ("spelling", "param"),
    [
        ({"image": URL}, "input[0].image"),
        ({"text": "a", "image": URL}, "input[0].image"),
        ([{"type": "image", "image": URL}], "input[0][0]"),
        ({"content": [text_part("a"), {"type": "image", "image": URL}]}, "input[0].content[1]"),
    ],
)
def test_an_image_that_is_called_a_text_is_refused(spelling: Any, param: str):
    """Not read as one in silence: one of the two is a mistake, and only the client knows which."""
    assert refusal({"input": [spelling], "modality": ["text"]}) == (
        f"'{param}' is an image; its modality says text. Leave modality out where inputs say themselves what "
        "they hold.",
        "modality",
        None,
    )


def test_what_is_said_and_not_read_is_named():
    def image(detail: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": URL, "detail": detail}}

    both = read([{"content": [image("auto")]}, {"content": [text_part("a"), image("low")]}])
    assert both.ignored == ("input[1].content[1].image_url.detail",)
    system = {"role": "system", "content": "Find the page."}
    assert read_body({"messages": [system, user("a")], "instruction": "Find it."}).ignored == ("instruction",)
    assert read_body({"messages": [user("a")], "instruction": "Find it."}).ignored == ()


def test_every_kind_of_element_may_stand_beside_every_other():
    """One request for a page's texts and pictures: one vector each, in the order they were sent."""
    given = [
        "a",
        [1, 2],
        PIXEL,
        {"text": "b", "image": URL},
        [text_part("c"), {"type": "image", "image": URL}],
        {"content": "d"},
        {"image": BASE64},
    ]
    request = read(given)
    assert contents(request) == [
        ("a", []),
        ("one two ", []),
        (None, [BASE64]),
        ("b", [URL]),
        ("c", [URL]),
        ("d", []),
        (None, [BASE64]),
    ]
    assert request.params == tuple(f"input[{index}]" for index in range(7))


def test_texts_of_one_input_are_lines_and_its_image_comes_first():
    """The family was trained with the image before the text, whatever order a client's library makes."""
    image = {"type": "image", "image": URL}
    for parts in (
        [text_part("a"), text_part("b"), image],
        [image, text_part("a"), text_part("b")],
        [text_part("a"), image, text_part("b")],
    ):
        assert contents(read([parts])) == [("a\nb", [URL])]


def test_an_empty_text_beside_an_image_changes_nothing():
    """A form with an empty field is still a picture; a form with nothing in it is still a mistake."""
    for spelling in (
        {"text": "", "image": URL},
        [text_part(""), {"type": "image", "image": URL}],
        {"content": [{"type": "image", "image": URL}, text_part("")]},
    ):
        assert contents(read([spelling])) == [(None, [URL])]


def test_a_request_without_images_refers_to_none():
    """What loads images has nothing to do, and is not asked."""
    assert read(["a", {"text": "b"}]).image_references == ()
    assert [len(images) for images in read(["a", PIXEL]).image_references] == [0, 1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": PIXEL}, "input"),
        ({"input": ["a", PIXEL]}, "input[1]"),
        ({"input": {"image": URL}}, "input.image"),
        ({"input": [{"text": "a", "image": URL}]}, "input[0].image"),
        ({"input": [[text_part("a"), {"type": "image", "image": URL}]]}, "input[0][1]"),
        ({"input": [{"content": [{"type": "image", "image": URL}]}]}, "input[0].content[0]"),
        ({"input": [{"content": PIXEL}]}, "input[0].content"),
        ({"messages": [user(PIXEL)]}, "messages[0].content"),
        ({"messages": [[user([{"type": "image", "image": URL}])]]}, "messages[0][0].content[0]"),
        ({"input": [user([{"type": "image", "image": URL}])]}, "input[0].content[0]"),
    ],
)
def test_an_image_is_called_what_the_client_calls_it(body: dict[str, Any], param: str):
    """An error about the fortieth picture must point at it; and a model of texts refuses it by that name."""
    [image] = [image for images in read_body(body).image_references for image in images]
    assert image.param == param
    assert refusal(body, info=INFO) == (
        "This model embeds text only; images are not supported.",
        param,
        "unsupported_modality",
    )


# Conversations


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", ["Find it.", [text_part("Find"), text_part("it.")]])
@pytest.mark.parametrize("info", [INFO, MULTIMODAL])
def test_a_system_message_is_the_instruction_of_its_conversation(role: str, content: Any, info: ModelInfo):
    """So vLLM's clients send the instruction of a query."""
    conversation = [{"role": role, "content": content}, user("a")]
    expected = EmbeddingInput(text="a", instruction="Find it." if isinstance(content, str) else "Find\nit.")
    for body in (
        {"messages": conversation},
        {"input": conversation},
        {"messages": conversation, "instruction": "meant for others"},
    ):
        assert read_body(body, info=info).inputs == (expected,)


def test_each_conversation_of_a_list_gives_a_vector():
    request = read_body({"messages": [[user("a")], [{"role": "system", "content": "i"}, user("b")]]})
    assert [(one.text, one.instruction) for one in request.inputs] == [("a", None), ("b", "i")]
    assert request.params == ("messages[0]", "messages[1]")
    assert request.lane is Lane.DOCUMENT
    assert read_body({"messages": [user("a")]}).params == ("messages",)
    assert read_body({"input": [user("a")]}).params == ("input",)
    assert read_body({"input": [[user("a")], [user("b")]]}).params == ("input[0]", "input[1]")


@pytest.mark.parametrize("silence", ["", [], [text_part("")]])
def test_the_start_of_an_answer_without_words_says_nothing(silence: Any):
    """vLLM's clients of Qwen3-VL-Embedding send it, because its prompt ends there."""
    messages = [user("a"), {"role": "assistant", "content": silence}]
    assert read_body({"messages": messages, "continue_final_message": True}).inputs == (
        EmbeddingInput(text="a"),
    )


USER_ONLY = (
    "which has no place here: a vector is made of one 'user' message, with a 'system' message before it as its "
    "instruction."
)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"messages": []}, "'messages' is empty; send at least one message.", "messages"),
        ({"messages": [[]]}, "'messages[0]' is an empty list.", "messages[0]"),
        (
            {"messages": [user("a"), [user("b")]]},
            "'messages' mixes messages and lists of messages; send one conversation, or a list of them.",
            "messages",
        ),
        (
            {"messages": [user("a"), user("b")]},
            "'messages' holds 2 user messages; a vector is made of exactly one. For a vector each, send a list "
            "of conversations.",
            "messages",
        ),
        (
            {"input": [[{"role": "system", "content": "i"}]]},
            "'input[0]' holds no user message; a vector is made of exactly one. For a vector each, send a list "
            "of conversations.",
            "input[0]",
        ),
        (
            {"messages": [user("a"), {"role": "assistant", "content": "b"}]},
            f"'messages[1]' has the role 'assistant', {USER_ONLY}",
            "messages[1]",
        ),
        (
            {"messages": [{"role": "assistant", "content": ""}]},
            f"'messages[0]' has the role 'assistant', {USER_ONLY}",
            "messages[0]",
        ),
        (
            {"input": [user("a"), {"role": "system", "content": "i"}]},
            f"'input[1]' has the role 'system', {USER_ONLY}",
            "input[1]",
        ),
        (
            {"messages": [{"role": "tool\n" + "x" * 100, "content": ""}, user("a")]},
            f"'messages[0]' has the role 'tool\\n{'x' * 58}…', {USER_ONLY}",
            "messages[0]",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image", "image": URL}]}, user("a")]},
            "'messages[0].content[0]' is an image; a 'system' message is the instruction, and holds text only.",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "system", "content": "i" * 8_001}, user("a")]},
            "'messages[0].content' has 8001 characters; an instruction may have 8000.",
            "messages[0].content",
        ),
        ({"messages": [user("")]}, "'messages[0].content' is an empty string.", "messages[0].content"),
        (
            {"messages": [user([])]},
            "'messages[0].content' is an empty list; send at least one part.",
            "messages[0].content",
        ),
        (
            {"input": "a", "messages": [user("a")]},
            "'input' and 'messages' both say what to embed; send one of them.",
            "messages",
        ),
        (
            {"input": [user("a")], "messages": [user("a")]},
            "'input' and 'messages' both say what to embed; send one of them.",
            "messages",
        ),
        ({"messages": None}, "Missing required parameter: 'input'.", "input"),
    ],
)
def test_a_conversation_without_an_honest_meaning_is_refused(body: dict[str, Any], message: str, param: str):
    """A turn that is dropped, or passed off as another, gives a vector of something that nobody said."""
    assert refusal(body) == (message, param, None)


def test_an_empty_messages_field_beside_an_input_says_nothing():
    assert read_body({"input": "a", "messages": None}).inputs == (EmbeddingInput(text="a"),)


def test_conversations_count_as_inputs():
    settings = with_settings(limits={"max_inputs": 2})
    assert refusal({"messages": [[user("a")]] * 3}, settings=settings)[:2] == (
        "'messages' holds 3 inputs; one request may hold 2 (max_inputs).",
        "messages",
    )
    assert len(read_body({"messages": [[user("a")]] * 2}, settings=settings).inputs) == 2


# What is refused


BOTH = "has both content and {}; send one."
NO_URI = "must end in an image's data URI, as its modality text_image says."


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        ({"input": [{"content": "a", "text": "b"}]}, f"'input[0]' {BOTH.format('text')}", "input[0]", None),
        ({"input": [{"content": "a", "image": URL}]}, f"'input[0]' {BOTH.format('image')}", "input[0]", None),
        ({"input": {}}, "'input' has neither content nor text nor image.", "input", None),
        ({"input": [[]]}, "'input[0]' is an empty list.", "input[0]", None),
        (
            {"input": [[1, {"type": "image", "image": URL}]]},
            "'input[0]' mixes token ids and content parts.",
            "input[0]",
            None,
        ),
        (
            {"input": [[1, 2]], "modality": "image"},
            "'input[0]' holds token ids, which stand for a text; its modality says image.",
            "modality",
            None,
        ),
        ({"input": "a", "modality": "text_image"}, f"'input' {NO_URI}", "input", None),
        ({"input": ["a", PIXEL], "modality": "text_image"}, f"'input[0]' {NO_URI}", "input[0]", None),
        ({"input": [f"{PIXEL} a"], "modality": ["text_image"]}, f"'input[0]' {NO_URI}", "input[0]", None),
        ({"input": [f"a {PIXEL}\nb"], "modality": "text_image"}, f"'input[0]' {NO_URI}", "input[0]", None),
        (
            {"input": ["a", "b"], "modality": ["text"]},
            "'modality' has 1 values for 2 inputs.",
            "modality",
            None,
        ),
        (
            {"input": [[{"type": "image", "image": URL}] * 2]},
            "'input[0]' holds 2 images; this model reads 1 in one input.",
            "input[0]",
            "too_many_images",
        ),
        (
            {"messages": [user([{"type": "image", "image": URL}] * 2)]},
            "'messages' holds 2 images; this model reads 1 in one input.",
            "messages",
            "too_many_images",
        ),
        ({"input": [{"image": ""}]}, "The image is empty.", "input[0].image", "invalid_image"),
        ({"input": "", "modality": "image"}, "The image is empty.", "input", "invalid_image"),
        (
            {"input": [{"image": "file:///etc/passwd"}]},
            "An image is an http or https URL, a data URI or base64, not 'file:'.",
            "input[0].image",
            "invalid_image",
        ),
        (
            {"input": [{"text": "a", "imgae": URL}]},
            "Unknown parameter: 'input[0].imgae'.",
            "input[0].imgae",
            "unknown_field",
        ),
        (
            {"input": [[{"type": "image", "image": URL, "alt": "a"}]]},
            "Unknown parameter: 'input[0][0].alt'.",
            "input[0][0].alt",
            "unknown_field",
        ),
        (
            {"input": [{"content": [{"type": "image_url", "image_url": {"uri": URL}}]}]},
            "Unknown parameter: 'input[0].content[0].image_url.uri'.",
            "input[0].content[0].image_url.uri",
            "unknown_field",
        ),
        (
            {"input": [[{"type": "image_url"}]]},
            "Missing required parameter: 'input[0][0].image_url'.",
            "input[0][0].image_url",
            None,
        ),
        (
            {"messages": [{"role": "user", "content": "a", "images": [URL]}]},
            "Unknown parameter: 'messages[0].images'.",
            "messages[0].images",
            "unknown_field",
        ),
        (
            {"input": [{"role": "user", "content": "a", "images": [URL]}]},
            "Unknown parameter: 'input[0].images'.",
            "input[0].images",
            "unknown_field",
        ),
        (
            {"input": [{"content": "a", "role": "user"}, {"text": "b"}]},
            "Unknown parameter: 'input[0].role'. Chat messages are an input only in a list where every element is "
            "one, as one vector for all of them; or send 'messages'.",
            "input[0].role",
            "unknown_field",
        ),
    ],
)
def test_what_could_mean_two_things_or_nothing_is_refused(
    body: dict[str, Any], message: str, param: str, code: str | None
):
    """An image that is dropped in silence is the worst failure there is: the vector looks like any other."""
    assert refusal(body) == (message, param, code)


@pytest.mark.parametrize("given", [[text_part("a"), {"type": "image_url", "image_url": URL}], text_part("a")])
def test_bare_parts_are_refused_with_the_two_ways_to_say_what_was_meant(given: Any):
    """Some servers make one vector of them, others one each: whoever guesses is wrong half of the time."""
    message, param, code = refusal({"input": given})
    assert param in ("input.type", "input[0].type")
    assert code == "unknown_field"
    assert message.startswith(f"Unknown parameter: '{param}'. ")
    assert '"input": [{"content": [...]}]' in message
    assert "one vector each" in message.lower()


def test_a_model_without_fusing_takes_text_and_image_one_by_one():
    assert MULTIMODAL.images is not None
    info = replace(MULTIMODAL, images=replace(MULTIMODAL.images, is_fused_with_text=False))
    assert contents(read(["a", PIXEL, {"image": URL}], info=info)) == [
        ("a", []),
        (None, [BASE64]),
        (None, [URL]),
    ]
    assert refusal({"input": [{"text": "a", "image": URL}]}, info=info) == (
        "'input[0]' holds a text and an image; this model embeds each of them alone. Send them as two inputs.",
        "input[0]",
        "unsupported_modality",
    )


def test_a_model_of_several_images_reads_them_in_the_order_they_were_sent():
    assert MULTIMODAL.images is not None
    info = replace(MULTIMODAL, images=replace(MULTIMODAL.images, max_images=2))
    parts = [{"type": "image", "image": URL}, text_part("a"), {"type": "image", "image": BASE64}]
    assert contents(read([parts], info=info)) == [("a", [URL, BASE64])]


def test_a_flood_of_images_is_refused_before_any_is_looked_at():
    """The second one is no image at all: had it been looked at, the answer would be about that."""
    settings = with_settings(media={"max_images": 1})
    for body, param in (
        ({"input": [{"image": URL}, {"image": "file:"}]}, "input[1].image"),
        (
            {"messages": [[user([{"type": "image", "image": image}])] for image in (URL, "file:")]},
            "messages[1][0].content[0]",
        ),
    ):
        assert refusal(body, settings=settings) == (
            "The request holds 2 images; one request may hold 1 (max_images).",
            param,
            "too_many_images",
        )


def test_characters_are_counted_of_texts_and_not_of_images():
    """An image of 3 MB has 4 million characters, and costs no more than its tokens."""
    settings = with_settings(limits={"max_input_chars": 3})
    body = {
        "input": [{"text": "abc", "image": PIXEL}, PIXEL, f"abc {PIXEL}"],
        "modality": ["text_image", "image", "text_image"],
    }
    assert len(read_body(body, settings=settings).inputs) == 3
    body = {"input": [f"abcd {PIXEL}"], "modality": "text_image"}
    assert refusal(body, settings=settings) == (
        "'input[0]' has 4 characters; an input may have 3 (max_input_chars).",
        "input[0]",
        "context_length_exceeded",
    )


def test_a_large_image_stops_nobody_while_it_is_recognised():
    """20 MB of a picture are 27 million characters: an expression over them held everybody up for 0.3 s."""
    uri = "data:image/png;base64," + "iVBORw0KGgo" * 2_450_000
    started_s = perf_counter()
    assert is_image_uri(uri)
    assert perf_counter() - started_s < 0.1


# Instructions


def ignored(given: Any, **fields: Any) -> tuple[str, ...]:
    return read(given, **fields).ignored


def test_an_instruction_that_the_model_does_not_read_is_named():
    """Its authors instruct queries only. LangChain's objects have one instruction for both sides."""
    assert ignored("a", instruction="i", input_type="document") == ("instruction",)
    assert ignored(["a", "b"], instruction="i", input_type="passage") == ("instruction",)
    item = {"text": "a", "instruction": "i", "input_type": "document"}
    assert ignored(["b", item], instruction="j", input_type="query") == ("input[1].instruction",)
    body = {"messages": [{"role": "system", "content": "i"}, user("a")], "input_type": "document"}
    assert read_body(body).ignored == ("messages[0].content",)


@pytest.mark.parametrize("fields", [{}, {"input_type": "query"}, {"input_type": "text"}])
def test_an_instruction_that_the_model_reads_is_not_named(fields: dict[str, Any]):
    request = read("a", instruction="i", **fields)
    assert request.ignored == ()
    assert [one.instruction for one in request.inputs] == ["i"]


def test_an_instruction_is_named_only_where_there_is_one_to_ignore():
    assert ignored("a", input_type="document") == ()
    assert ignored("a", instruction="", input_type="document") == ()
    assert ignored("a", instruction="i", input_type="document", info=INFO) == ()
    assert MULTIMODAL.template is not None
    info = replace(MULTIMODAL, template=replace(MULTIMODAL.template, instructs_documents=True))
    assert ignored("a", instruction="i", input_type="document", info=info) == ()


def test_an_instruction_beside_an_image_counts_as_beside_a_text():
    given = {"image": URL, "instruction": "i", "input_type": "query"}
    assert read(given).inputs == (EmbeddingInput(instruction="i", prompt_name="query"),)


def test_token_ids_of_a_templates_model_are_taken_as_they_are():
    [one] = read([[5, 6]], token_encoding="model", truncate="START", truncate_prompt_tokens=4).inputs
    assert (one.token_ids, one.max_tokens, one.truncation) == ((5, 6), 4, "start")
    assert refusal({"input": [[5]], "token_encoding": "model", "instruction": "i"})[1] == "instruction"
    assert len(read([[5]], token_encoding="model", input_type="query").inputs) == 1


# Any spelling

TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: not is_image_uri(text))
IMAGES = st.sampled_from([URL, PIXEL, BASE64])


def source_of(image: str) -> str:
    return image.removeprefix("data:image/png;base64,")


@st.composite
def parts_of(draw: st.DrawFn) -> tuple[list[Any], tuple[str | None, list[str]]]:
    """Content parts in some order, and what they hold."""
    texts = draw(st.lists(TEXTS, max_size=3))
    images = draw(st.lists(IMAGES, max_size=1))
    if not texts and not images:
        texts = ["a"]
    parts = [text_part(text) for text in texts]
    for image in images:
        parts.insert(draw(st.integers(0, len(parts))), draw(st.sampled_from(image_parts(image))))
    return parts, ("\n".join(texts) if texts else None, [source_of(image) for image in images])


@st.composite
def elements(draw: st.DrawFn) -> tuple[Any, tuple[str | None, list[str]]]:
    """One element of ``input`` in some spelling, and what it holds."""
    match draw(st.sampled_from(["string", "uri", "ids", "fields", "parts", "content", "content string"])):
        case "string":
            text = draw(TEXTS)
            return text, (text, [])
        case "uri":
            return PIXEL, (None, [BASE64])
        case "ids":
            ids = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
            return ids, ("".join(["zero ", "one ", "two "][one] for one in ids), [])
        case "fields":
            text, image = draw(TEXTS), draw(IMAGES)
            return {"image": image, "text": text}, (text, [source_of(image)])
        case "parts":
            return draw(parts_of())
        case "content":
            parts, expected = draw(parts_of())
            return {"content": parts}, expected
        case _:
            text = draw(TEXTS)
            return {"content": text}, (text, [])


@settings(max_examples=300, deadline=None)
@given(given=st.lists(elements(), min_size=1, max_size=6))
def test_a_list_gives_a_vector_for_each_of_its_elements_in_order(given: list[Any]):
    """Clients never sort answers by index: positions are all they have."""
    assert contents(read([spelling for spelling, _ in given])) == [expected for _, expected in given]


@settings(max_examples=200, deadline=None)
@given(
    given=st.lists(parts_of(), min_size=1, max_size=4),
    instructions=st.lists(st.none() | TEXTS, min_size=4, max_size=4),
    name=st.sampled_from(["input", "messages"]),
)
def test_a_list_of_conversations_gives_a_vector_for_each_in_order(
    given: list[Any], instructions: list[str | None], name: str
):
    conversations = [
        [*([] if said is None else [{"role": "system", "content": said}]), user(parts)]
        for (parts, _), said in zip(given, instructions, strict=False)
    ]
    request = read_body({name: conversations})
    assert contents(request) == [expected for _, expected in given]
    assert [one.instruction for one in request.inputs] == instructions[: len(given)]
    alone = read_body({name: conversations[0]})
    assert contents(alone) == [given[0][1]]


STRING = st.sampled_from(["a", "", " ", URL, PIXEL, BASE64, f"a {PIXEL}", f"{PIXEL} a", "file:a"])
PART = st.sampled_from(image_parts(PIXEL)) | STRING.map(text_part)
CONTENT = STRING | st.lists(PART, max_size=3)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "system", "assistant", "tool"]), "content": CONTENT}
)
ITEM = st.fixed_dictionaries(
    {}, optional={"content": CONTENT, "text": STRING, "image": STRING, "instruction": STRING}
)
IDS = st.lists(st.integers(-1, 3), max_size=3)
INPUT = (
    STRING
    | ITEM
    | IDS
    | st.lists(STRING | ITEM | IDS | st.lists(PART, max_size=3), max_size=4)
    | st.lists(st.integers(0, 2) | MESSAGE | ITEM | st.lists(PART | MESSAGE | ITEM, max_size=3), max_size=3)
)
MESSAGES = st.lists(MESSAGE, max_size=3) | st.lists(st.lists(MESSAGE, max_size=3) | MESSAGE, max_size=3)
MODALITY = st.sampled_from(["text", "image", "text_image", "sound"])
BODY = st.one_of(
    st.fixed_dictionaries({name: what}, optional={"modality": MODALITY | st.lists(MODALITY, max_size=2)})
    for name, what in (("input", INPUT), ("input", MESSAGES), ("messages", MESSAGES))
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=BODY, info=st.sampled_from([INFO, MULTIMODAL]))
def test_whatever_is_sent_is_read_or_refused(body: dict[str, Any], info: ModelInfo):
    """Anything but a refusal would be a 500, which the SDKs send three times and which wakes somebody up."""
    try:
        request = read_body(body, info=info)
    except InvalidRequestError:
        return
    for text, images in contents(request):
        assert text or images
        assert not images or info is MULTIMODAL
