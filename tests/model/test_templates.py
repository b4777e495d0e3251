"""Rows of a template: special tokens by id, texts as ordinary text, cuts in the client's text alone."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.errors import InputError, InputTooLongError
from model.templates import Filling, Row, TemplateTokenizer
from model.types import ImageTokens, PromptTemplate, Truncation
from tests.model.gme_cases import FOLDER

START, END, IMAGE_START, PAD, IMAGE_END = 401, 402, 409, 412, 410
IMAGES = ImageTokens(start=(IMAGE_START,), pad=PAD, end=(IMAGE_END,))
GME_LIKE = PromptTemplate(
    pieces=(START, "system\n{instruction}", END, "\n", START, "user\n{images}{text}", END, "\n", 400),
    default_instruction="",
    instructs_documents=False,
)
BETWEEN_LITERALS = PromptTemplate(
    pieces=(START, "{instruction}: {text} (in short)", END), default_instruction="", instructs_documents=True
)

texts = st.text(max_size=40) | st.sampled_from(
    ["<|im_end|>", "<|image_pad|>{text}", "{images}", " \n\n x", "🚗" * 5, "e\u0301", "\u200b", "\r\n"]
)


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def filler(template: PromptTemplate = GME_LIKE) -> TemplateTokenizer:
    return TemplateTokenizer(tokenizer(), template, IMAGES)


def row(
    one: TemplateTokenizer,
    text: str | None,
    *,
    instruction: str = "Be kind.",
    images: Sequence[int] = (),
    limit: int = 1_000,
    truncation: Truncation = Truncation.END,
) -> Row | InputError:
    filling = Filling(instruction=instruction, text=text, num_image_tokens=images)
    [made] = one.rows([filling], limits=[limit], truncations=[truncation])
    return made


def ids(*arguments: object, **options: object) -> list[int]:
    made = row(*arguments, **options)
    assert isinstance(made, Row), made
    return made.token_ids


def plain(text: str) -> list[int]:
    """Ids of a text in which nothing is special."""
    one = tokenizer()
    one.encode_special_tokens = True
    return one.encode(text, add_special_tokens=False).ids


FILLER, BRACKETED = filler(), filler(BETWEEN_LITERALS)


@given(text=st.text(alphabet=st.characters(exclude_characters="<|>{}", codec="utf-8"), max_size=40))
def test_a_harmless_text_has_the_ids_of_the_whole_prompt_tokenised_at_once(text: str):
    """How the authors do it. Merges at the borders of the text are those of the whole."""
    prompt = f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|endoftext|>"
    assert ids(FILLER, text) == tokenizer().encode(prompt, add_special_tokens=False).ids


@given(text=texts, instruction=texts)
def test_whatever_a_client_writes_the_special_tokens_are_the_templates(text: str, instruction: str):
    made = ids(FILLER, text, instruction=instruction, images=[3])
    special = [token_id for token_id in made if token_id >= 400]
    assert special == [START, END, START, IMAGE_START, PAD, PAD, PAD, IMAGE_END, END, 400]


def test_images_stand_where_the_template_says_each_with_its_tokens():
    made = ids(FILLER, "a", images=[2, 1])
    image_row = [IMAGE_START, PAD, PAD, IMAGE_END, IMAGE_START, PAD, IMAGE_END]
    assert made == [START, *plain("system\nBe kind."), END, *plain("\n"), START, *plain("user\n"), *image_row,
                    *plain("a"), END, *plain("\n"), 400]  # fmt: skip


def test_a_text_that_became_a_place_for_an_image_is_refused_and_harms_no_neighbour():
    """Whatever the tokenizer thinks: on CUDA such a row would end the process, and all that wait for it."""
    described = json.loads(tokenizer().to_str())
    for token in described["added_tokens"]:
        token["special"] = False
    gullible = TemplateTokenizer(Tokenizer.from_str(json.dumps(described)), GME_LIKE, IMAGES)
    fillings = [
        Filling(instruction="", text=text, num_image_tokens=images)
        for text, images in (("a <|image_pad|>", ()), ("a", ()), ("<|image_pad|>", (2,)), ("a", (2,)))
    ]
    made = gullible.rows(fillings, limits=[1_000] * 4, truncations=[Truncation.END] * 4)
    assert [type(one) for one in made] == [InputError, Row, InputError, Row]
    assert str(made[0]) == "the input has 1 tokens that stand for images, and its images have 0"
    assert str(made[2]) == "the input has 3 tokens that stand for images, and its images have 2"


def test_without_a_text_the_template_stands_alone():
    assert ids(FILLER, None) == ids(FILLER, "")
    assert isinstance(row(FILLER, None, limit=5), InputTooLongError)


@given(
    text=st.text(alphabet="ab 日🚗\n", min_size=1, max_size=40),
    num_dropped=st.integers(0, 80),
    truncation=st.sampled_from([Truncation.START, Truncation.END]),
)
@pytest.mark.parametrize("one", [FILLER, BRACKETED], ids=["gme", "between literals"])
def test_a_cut_drops_exactly_the_excess_and_only_of_the_text(
    one: TemplateTokenizer, text: str, num_dropped: int, truncation: Truncation
):
    whole = ids(one, text)
    limit = len(whole) - num_dropped
    made = row(one, text, limit=limit, truncation=truncation)
    num_of_template = len(ids(one, None))
    if isinstance(made, InputTooLongError):
        assert (made.num_tokens, made.max_tokens) == (len(whole), limit)
        # Refused only where next to nothing of the text could stay: merges at its borders are the template's.
        assert limit <= num_of_template + 1
        return
    assert len(made.token_ids) == limit
    assert made.num_dropped_tokens == num_dropped
    common = next((i for i, (a, b) in enumerate(zip(made.token_ids, whole, strict=False)) if a != b), limit)
    assert whole[:common] + whole[common + num_dropped :] == made.token_ids


def test_the_end_or_the_start_of_the_text_stays():
    text = "alpha beta gamma delta"
    whole = ids(FILLER, text)
    limit = len(whole) - 3
    [*_, first], [last, *_] = plain("user\na"), plain(text)[::-1]
    kept_start = ids(FILLER, text, limit=limit, truncation=Truncation.END)
    kept_end = ids(FILLER, text, limit=limit, truncation=Truncation.START)
    assert first in kept_start
    suffix = [END, *plain("\n"), 400]
    assert kept_end[-len(suffix) - 1 :] == [last, *suffix]
    assert kept_start[-len(suffix) :] == suffix
    assert kept_start != kept_end


def test_an_instruction_is_never_cut():
    refusal = row(FILLER, "short", instruction="very " * 50, limit=40)
    assert isinstance(refusal, InputTooLongError)
    assert refusal.max_tokens == 40


def test_each_input_of_a_batch_has_its_own_limit_and_fault():
    fillings = [
        Filling(instruction="", text=text, num_image_tokens=())
        for text in ("a b c d e f", "a b c d e f", "b")
    ]
    whole = len(ids(FILLER, "a b c d e f", instruction=""))
    made = FILLER.rows(
        fillings,
        limits=[whole, whole - 1, whole],
        truncations=[Truncation.NONE, Truncation.NONE, Truncation.END],
    )
    assert [type(one) for one in made] == [Row, InputTooLongError, Row]
    assert made[0].token_ids == ids(FILLER, "a b c d e f", instruction="")
