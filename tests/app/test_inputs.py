"""Every spelling of a request becomes one list of inputs."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from app.bodies import decode_embedding_request
from app.errors import InvalidRequestError, ModelNotFoundError
from app.inputs import EmbeddingRequest, known_names, parse, resolve_model
from app.settings import Settings, TokenIds, Truncate
from app.tokens import Cl100k
from batching import Lane
from model import EmbeddingInput, ModelInfo, Truncation
from tests.app.fakes import INFO, with_settings

E5 = replace(INFO, prompts={"query": "query: ", "passage": "passage: "})
WORDS = Cl100k([b"zero ", b"one ", b"two ", b"data:", b"image/", b"png;base64,AA"])


def read(
    given: Any,
    *,
    info: ModelInfo = INFO,
    settings: Settings | None = None,
    headers: dict[str, str] | None = None,
    suffix: str | None = None,
    **fields: Any,
) -> EmbeddingRequest:
    return parse(
        decode_embedding_request(msgspec.json.encode({"model": "m", "input": given, **fields})),
        headers=headers or {},
        model_input_type=suffix,
        info=info,
        settings=settings or Settings(),
        cl100k=WORDS,
    )


def texts(given: Any, **fields: Any) -> list[str | None]:
    return [one.text for one in read(given, **fields).inputs]


def refusal(given: Any, **fields: Any) -> tuple[str, str | None, str | None]:
    with pytest.raises(InvalidRequestError) as caught:
        read(given, **fields)
    return caught.value.message, caught.value.param, caught.value.code


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], ["one two "]),
        ([[1], [2, 0]], ["one ", "two zero "]),
        ({"text": "a"}, ["a"]),
        ({"content": "a"}, ["a"]),
        ([{"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], ["a\nb"]),
        ([[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]], ["a\nb"]),
        (["a", [1], {"text": "b"}, [{"type": "text", "text": "c"}]], ["a", "one ", "b", "c"]),
        (
            "data:image/png;base64 is how such a text begins",
            ["data:image/png;base64 is how such a text begins"],
        ),
        ("\x00", ["\x00"]),
    ],
)
def test_every_spelling_gives_its_texts_in_order(given: Any, expected: list[str]):
    """Clients never sort answers by index: positions are all they have."""
    assert texts(given) == expected


def test_the_names_of_inputs_are_the_clients_own():
    """An error must point at what the client sent, not at what we made of it."""
    assert read("a").params == ("input",)
    assert read([1, 2]).params == ("input",)
    assert read(["a", [1]]).params == ("input[0]", "input[1]")


IMAGE = "This model embeds text only; images are not supported."
PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (PIXEL, "input"),
        (["a", "DATA:image/JPEG;base64,AA\r\nAA==\n"], "input[1]"),
        ({"image": "https://example.org/a.png"}, "input.image"),
        ([{"text": "a", "image": PIXEL}], "input[0].image"),
        ([[{"type": "image_url", "image_url": PIXEL}]], "input[0][0]"),
        (
            [{"content": [{"type": "text", "text": "a"}, {"type": "image", "image": PIXEL}]}],
            "input[0].content[1]",
        ),
        ([[{"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}]], "input[0][0]"),
        ([[{"type": "image_base64", "image_base64": PIXEL}]], "input[0][0]"),
        ([[{"type": "input_image", "image_url": PIXEL}]], "input[0][0]"),
    ],
)
def test_an_image_for_a_text_model_is_refused_and_never_embedded_as_text(given: Any, param: str):
    """Dropping it, or embedding its base64, gives a vector that means nothing."""
    assert refusal(given) == (IMAGE, param, "unsupported_modality")


def test_a_string_is_text_where_the_client_says_so():
    """A search engine for source code does embed data URIs."""
    assert texts(PIXEL, modality="text") == [PIXEL]
    assert texts(["a", PIXEL], modality=["text", "text"]) == ["a", PIXEL]


@pytest.mark.parametrize(
    ("modality", "message", "code"),
    [
        ("image", IMAGE, "unsupported_modality"),
        (["text", "text_image"], IMAGE, "unsupported_modality"),
        (["text"], "'modality' has 1 values for 2 inputs.", None),
        ("sound", "'sound' is not a modality. Allowed: text, image, text_image.", None),
    ],
)
def test_a_modality_the_model_has_not_is_refused(modality: Any, message: str, code: str | None):
    assert refusal(["a", "b"], modality=modality) == (message, "modality", code)


@pytest.mark.parametrize(
    ("given", "message", "param"),
    [
        ({}, "'input' has neither content nor text nor image.", "input"),
        ([{"instruction": "i"}], "'input[0]' has neither content nor text nor image.", "input[0]"),
        ([{"text": "a", "content": "b"}], "'input[0]' has both content and text; send one.", "input[0]"),
        ([{"text": ""}], "'input[0].text' is an empty string.", "input[0].text"),
        (
            [{"content": []}],
            "'input[0].content' is an empty list; send at least one part.",
            "input[0].content",
        ),
        (
            [{"content": [{"type": "text", "text": ""}]}],
            "'input[0].content' is an empty string.",
            "input[0].content",
        ),
    ],
)
def test_an_item_says_one_thing(given: Any, message: str, param: str):
    assert refusal(given) == (message, param, None)


def test_a_text_of_too_many_characters_is_refused_before_it_is_tokenised():
    """A tokeniser that chews on 60 MB of one text stops everybody else."""
    settings = with_settings(limits={"max_input_chars": 3})
    assert refusal(["abc", "abcd"], settings=settings) == (
        "'input[1]' has 4 characters; an input may have 3 (max_input_chars).",
        "input[1]",
        "context_length_exceeded",
    )


@pytest.mark.parametrize(
    "text",
    ["\n" * 4_000_000, "data:image/png;base64" + "\n" * 4_000_000 + " x", "data:image/" + "a" * 4_000_000],
    ids=["empty lines", "an image's end", "an image's type"],
)
def test_looking_for_an_image_takes_no_longer_than_reading(text: str):
    """An expression that goes back would need hours for these, and stop everybody else."""
    settings = with_settings(limits={"max_input_chars": len(text)})
    assert texts(text, settings=settings) == [text]


@pytest.mark.parametrize(
    ("given", "fields", "param"),
    [
        ("a", {"instruction": "i" * 8_001}, "instruction"),
        ([{"text": "a", "instruction": "i" * 8_001}], {}, "input[0].instruction"),
        ([{"text": "a", "instruction": "i" * 8_001, "input_type": "query"}], {}, "input[0].instruction"),
    ],
)
def test_an_instruction_of_too_many_characters_is_refused(given: Any, fields: dict[str, Any], param: str):
    """It is tokenised with every input: 2,048 inputs would make 60 MB of it 120 GB."""
    message = f"'{param}' has 8001 characters; an instruction may have 8000."
    assert refusal(given, **fields) == (message, param, None)
    assert texts("a", instruction="i" * 8_000) == ["a"]


# Token arrays


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"instruction": "i"}, "instruction"),
        ({"input_type": "query"}, "input_type"),
        ({"task": "document"}, "task"),
        ({"headers": {"x-input-type": "query"}}, "X-Input-Type"),
        ({"suffix": "query"}, "model"),
    ],
)
def test_a_prompt_for_ids_that_are_taken_as_they_are_is_refused(fields: dict[str, Any], param: str):
    """Dropped in silence, queries would be compared on the documents' side."""
    message = (
        f"'input[0]' holds token ids, which are taken as they are; {param} would put a prompt before them. "
        f"Send strings, or leave {param} out."
    )
    assert refusal([[5]], info=E5, token_encoding="model", **fields) == (message, param, "invalid_input")


@pytest.mark.parametrize(
    ("info", "fields"),
    [
        (INFO, {"input_type": "query"}),
        (E5, {"input_type": "text"}),
        (E5, {"instruction": "", "input_type": "query"}),
        (E5, {"settings": with_settings(model={"default_input_type": "query"})}),
    ],
)
def test_a_prompt_that_is_empty_or_not_asked_for_leaves_ids_alone(info: ModelInfo, fields: dict[str, Any]):
    [one] = read([[5]], info=info, token_encoding="model", **fields).inputs
    assert one.token_ids == (5,)


@pytest.mark.parametrize(("default", "said"), [(TokenIds.MODEL, None), (TokenIds.CL100K_BASE, "model")])
def test_ids_of_the_model_are_taken_as_they_are(default: TokenIds, said: str | None):
    request = read([[5, 6], [7]], settings=with_settings(model={"token_ids": default}), token_encoding=said)
    assert [one.token_ids for one in request.inputs] == [(5, 6), (7,)]
    assert request.token_encoding is TokenIds.MODEL


def test_the_encoding_is_told_only_where_there_were_token_arrays():
    assert read("a").token_encoding is None
    assert read([1]).token_encoding is TokenIds.CL100K_BASE


def test_token_arrays_can_be_switched_off():
    settings = with_settings(model={"token_ids": TokenIds.REJECT})
    assert refusal([[1]], settings=settings) == (
        "Token arrays are not accepted here; send strings. "
        "LangChain sends strings with check_embedding_ctx_length=False.",
        "input[0]",
        "token_arrays_rejected",
    )
    assert texts("a", settings=settings) == ["a"]


def test_an_unknown_token_encoding_is_refused():
    assert refusal([1], token_encoding="p50k_base") == (
        "'p50k_base' is not a token encoding. Allowed: cl100k_base, model, reject.",
        "token_encoding",
        None,
    )


def test_a_data_uri_in_token_ids_is_refused_with_the_way_out():
    """LangChain would cut it into chunks and average their vectors."""
    message, param, code = refusal([[3, 4, 5]], modality="text")
    assert message == (
        "'input[0]' holds the token ids of an image's data URI. "
        "LangChain sends strings with check_embedding_ctx_length=False."
    )
    assert (param, code) == ("input[0]", "unsupported_modality")


def test_token_ids_that_stand_for_nothing_are_an_empty_input():
    assert refusal([[1], [100257]]) == ("'input[1]' stands for an empty text.", "input[1]", "invalid_input")


# Query, document or neither


def prompt_names(given: Any = "a", **fields: Any) -> list[str | None]:
    return [one.prompt_name for one in read(given, **fields).inputs]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("query", "query"),
        ("search_query", "query"),
        ("retrieval.query", "query"),
        ("RETRIEVAL_QUERY", "query"),
        ("document", "passage"),
        ("passage", "passage"),
        ("search_document", "passage"),
        ("retrieval.passage", "passage"),
        ("text", None),
    ],
)
@pytest.mark.parametrize("field", ["input_type", "task", "prompt_name"])
def test_every_vendors_name_for_a_side_finds_the_models_prompt(field: str, name: str, expected: str | None):
    assert prompt_names(info=E5, **{field: name}) == [expected]


@pytest.mark.parametrize("name", ["query", "document"])
def test_a_model_without_prompts_takes_both_sides(name: str):
    """The same client code must run against any model."""
    assert prompt_names(input_type=name) == [name]


ALLOWED = (
    "query, document, passage, search_query, retrieval.query, retrieval_query, search_document, "
    "retrieval.passage, retrieval_document, corpus, text"
)
"""By a model with the prompts ``query`` and ``passage``."""


def test_an_input_type_nobody_knows_is_refused_with_the_list():
    """Ignored, it would give vectors of the wrong side."""
    assert refusal("a", info=E5, input_type="clustering") == (
        f"'clustering' is not an input type of this model. Allowed: {ALLOWED}.",
        "input_type",
        "invalid_input_type",
    )
    assert refusal("a", headers={"x-input-type": "x" * 100}, info=E5)[:2] == (
        f"'{'x' * 63}…' is not an input type of this model. Allowed: {ALLOWED}.",
        "X-Input-Type",
    )


@pytest.mark.parametrize("name", ALLOWED.split(", "))
def test_every_name_of_that_list_is_taken(name: str):
    assert len(prompt_names(info=E5, input_type=name)) == 1


def test_what_is_said_nearest_to_the_input_wins():
    settings = with_settings(model={"default_input_type": "passage"})
    header = {"x-input-type": "query"}
    item = {"text": "a", "input_type": "query"}
    assert prompt_names(info=E5, settings=settings) == ["passage"]
    assert prompt_names(info=E5, settings=settings, suffix="query") == ["query"]
    assert prompt_names(info=E5, suffix="document", headers=header) == ["query"]
    assert prompt_names(info=E5, headers=header, input_type="document") == ["passage"]
    assert prompt_names([item, "b"], info=E5, input_type="document") == ["query", "passage"]


def test_input_types_that_contradict_each_other_are_refused():
    assert refusal("a", input_type="query", task="passage") == (
        "'input_type' and 'task' contradict each other; send one of them.",
        "task",
        None,
    )
    assert prompt_names("a", input_type="query", task="search_query") == ["query"]


def test_a_prompt_is_never_inferred_from_the_shape_of_a_request():
    """LangChain sends a query as a list of one, its JavaScript twin as a string."""
    assert prompt_names("a", info=E5) == prompt_names(["a"], info=E5) == [None]
    assert prompt_names(["a", "b"], info=E5) == [None, None]


def test_an_instruction_holds_for_inputs_that_say_nothing_themselves():
    given = ["a", {"text": "b", "instruction": "own"}, {"text": "c", "input_type": "document"}]
    inputs = read(given, info=E5, instruction="shared").inputs
    assert [(one.prompt_name, one.instruction) for one in inputs] == [
        (None, "shared"),
        (None, "own"),
        ("passage", None),
    ]


# Truncation


@pytest.mark.parametrize(
    ("fields", "default", "expected"),
    [
        ({}, Truncate.END, Truncation.END),
        ({}, Truncate.NONE, Truncation.NONE),
        ({"truncate": "START"}, Truncate.END, Truncation.START),
        ({"truncate": "none"}, Truncate.END, Truncation.NONE),
        ({"truncate": False}, Truncate.END, Truncation.NONE),
        ({"truncate": True}, Truncate.NONE, Truncation.END),
        ({"truncate": True}, Truncate.START, Truncation.START),
        ({"truncation": False}, Truncate.END, Truncation.NONE),
        ({"truncate_prompt_tokens": 5}, Truncate.NONE, Truncation.END),
        ({"truncate_prompt_tokens": 5, "truncate": "START"}, Truncate.NONE, Truncation.START),
    ],
)
def test_truncation_is_what_the_request_says_else_the_setting(
    fields: dict[str, Any], default: Truncate, expected: Truncation
):
    settings = with_settings(model={"truncate": default})
    assert read("a", settings=settings, **fields).inputs[0].truncation is expected


@pytest.mark.parametrize(("asked", "expected"), [(None, None), (-1, None), (5, 5), (2**62, 16)])
def test_a_shorter_limit_can_be_asked_for(asked: int | None, expected: int | None):
    assert read("a", truncate_prompt_tokens=asked).inputs[0].max_tokens == expected


def test_a_limit_of_nothing_and_an_unknown_way_to_truncate_are_refused():
    assert refusal("a", truncate_prompt_tokens=0) == (
        "'truncate_prompt_tokens' must be at least 1, or -1 for the model's limit, not 0.",
        "truncate_prompt_tokens",
        None,
    )
    assert refusal("a", truncation="MIDDLE") == (
        "'MIDDLE' is not a way to truncate. Allowed: NONE, START, END, true, false.",
        "truncation",
        None,
    )


# What comes back


@pytest.mark.parametrize("asked", [None, 8, 4, 2])
def test_the_native_size_and_the_trained_ones_can_be_asked_for(asked: int | None):
    assert read("a", dimensions=asked).dimensions == asked


@pytest.mark.parametrize("asked", [0, -1, 3, 16, 2**62])
def test_a_size_the_model_was_not_trained_for_is_refused(asked: int):
    """Cut vectors of a model that was not trained for it are worse than none."""
    assert refusal("a", dimensions=asked) == (
        f"This model gives no vectors of {asked} dimensions. Allowed: 8, 4, 2.",
        "dimensions",
        "invalid_dimensions",
    )


def test_vectors_are_normalised_unless_declined():
    assert read("a").normalize
    assert not read("a", normalize=False).normalize
    assert not read("a", normalized=False).normalize


@pytest.mark.parametrize("field", ["embedding_type", "output_dtype"])
def test_number_formats_that_are_not_served_are_refused(field: str):
    """Ignored, the client would read floats as packed bits."""
    assert refusal("a", **{field: "int8"}) == (
        f"'{field}' must be 'float'; for base64 of float32 set 'encoding_format'.",
        field,
        None,
    )
    assert texts("a", **{field: "float"}) == ["a"]


# Lane and deadline


def test_lane_and_deadline_never_change_an_input():
    """They are about when, so a retry in another lane must give the same vector."""
    plain = read(["a"])
    urgent = read(["a"], priority="batch", timeout_ms=5, headers={"x-stainless-read-timeout": "60"})
    assert urgent.inputs == plain.inputs == (EmbeddingInput(text="a"),)
    assert (plain.lane, plain.timeout_s) == (Lane.QUERY, 600.0)
    assert (urgent.lane, urgent.timeout_s) == (Lane.BATCH, 0.005)


def test_what_the_items_are_called_decides_the_lane():
    assert read(["a", "b"], input_type="query").lane is Lane.QUERY
    assert read("a", suffix="passage").lane is Lane.DOCUMENT
    assert (
        read([{"text": "a", "input_type": "query"}, {"text": "b", "input_type": "document"}]).lane
        is Lane.DOCUMENT
    )


# Model names


def test_a_model_answers_to_its_name_its_aliases_and_openais_names():
    known = known_names("tiny", ["org/tiny"], openai_aliases=True)
    assert known == (
        "tiny",
        "org/tiny",
        "text-embedding-3-small",
        "text-embedding-3-large",
        "text-embedding-ada-002",
    )
    assert known_names("tiny", ["tiny"], openai_aliases=False) == ("tiny",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tiny", None), ("tiny-query", "query"), ("tiny-passage", "passage"), ("ada-query", None)],
)
def test_a_suffix_asks_for_an_input_type_unless_it_is_part_of_a_name(name: str, expected: str | None):
    assert resolve_model(name, ["tiny", "ada-query"]) == expected


@pytest.mark.parametrize("name", ["", "gpt-4", "tiny-cluster", "-query", "TINY"])
def test_an_unknown_model_is_an_error_that_lists_what_is_served(name: str):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(name, ["tiny", "mini"])
    assert str(caught.value) == f"The model {name!r} is not served here. Served: tiny, mini."
