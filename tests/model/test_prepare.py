"""Token ids: exactly the tokenizer's, cut so that the special tokens stay."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from model import (
    EmbeddingInput,
    Features,
    InputError,
    InputTooLongError,
    ModelInfo,
    Preparer,
    TokenIdError,
    Truncation,
)
from tests.model.checkpoints import roberta_tokenizer, suffix_tokenizer, wordpiece_tokenizer

TOKENIZERS = {"wordpiece": wordpiece_tokenizer, "roberta": roberta_tokenizer, "suffix": suffix_tokenizer}


def model_info(tokenizer: PreTrainedTokenizerFast, **changes: object) -> ModelInfo:
    fields: dict[str, object] = {
        "source": "tiny",
        "family": "sentence-transformers",
        "architecture": "BertModel",
        "dimension": 32,
        "max_tokens": 16,
        "vocab_size": len(tokenizer),
        "num_parameters": 1,
        "dtype": "float32",
        "device": "cpu",
        "pooling": "mean",
        "is_normalized": True,
        "is_packed": True,
        "packing_note": "",
        "prompts": {"query": "search: "},
        "default_prompt_name": None,
        "include_prompt": True,
        "matryoshka_dimensions": (),
        "tokenizer_json": tokenizer.backend_tokenizer.to_str(),
        "fingerprint": "",
    }
    return ModelInfo(**fields | changes)


def prepare_one(preparer: Preparer, one: EmbeddingInput) -> Features:
    [features] = preparer.prepare([one])
    if isinstance(features, InputError):
        raise features
    return features


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(min_size=1, max_size=60))
def test_ids_and_cuts_are_those_of_the_tokenizers_own_truncation(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    preparer = Preparer(model_info(tokenizer))
    reference = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    whole = len(reference.encode(text).ids)
    if whole == 0:
        return
    for truncation, direction in ((Truncation.END, "right"), (Truncation.START, "left")):
        reference.enable_truncation(16, direction=direction)
        expected = reference.encode(text).ids
        reference.no_truncation()
        features = prepare_one(preparer, EmbeddingInput(text=text, truncation=truncation))
        assert features.token_ids.tolist() == expected
        assert features.token_ids.dtype == np.int32
        assert features.num_dropped_tokens == whole - len(expected)


def test_a_text_that_is_too_long_is_refused_with_both_numbers_when_truncation_is_declined() -> None:
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    with pytest.raises(InputTooLongError) as caught:
        prepare_one(preparer, EmbeddingInput(text="fox " * 40, truncation=Truncation.NONE))
    assert str(caught.value) == (
        "This model's maximum context length is 16 tokens, however you requested 42 tokens."
    )
    assert (caught.value.num_tokens, caught.value.max_tokens) == (42, 16)


def test_one_refused_input_leaves_its_neighbours_alone() -> None:
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    before, refused, after = preparer.prepare(
        [
            EmbeddingInput(text="fox"),
            EmbeddingInput(text="fox " * 40, truncation=Truncation.NONE),
            EmbeddingInput(text="dog"),
        ]
    )
    assert isinstance(before, Features)
    assert isinstance(refused, InputTooLongError)
    assert isinstance(after, Features)


def test_a_text_cut_at_its_start_keeps_its_prompt_and_its_special_tokens() -> None:
    tokenizer = wordpiece_tokenizer()
    preparer = Preparer(model_info(tokenizer))
    text = "words appear as well " * 6 + "near the river"
    cut = prepare_one(preparer, EmbeddingInput(text=text, prompt_name="query", truncation=Truncation.START))
    decoded = tokenizer.decode(cut.token_ids.tolist())
    assert len(cut.token_ids) == 16
    assert decoded.startswith("[CLS] search :")
    assert decoded.endswith("river [SEP]")


def test_a_lower_limit_of_the_request_is_honoured_and_a_higher_one_is_not() -> None:
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    long_text = "fox " * 40
    assert prepare_one(preparer, EmbeddingInput(text=long_text, max_tokens=9)).num_tokens == 9
    assert prepare_one(preparer, EmbeddingInput(text=long_text, max_tokens=99)).num_tokens == 16


def test_a_limit_that_leaves_no_room_for_text_is_refused() -> None:
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    with pytest.raises(InputTooLongError):
        prepare_one(preparer, EmbeddingInput(text="fox dog", max_tokens=2))


@pytest.mark.parametrize("what", [{"text": "fox " * 40}, {"token_ids": [1] * 42}], ids=["text", "token ids"])
def test_a_refusal_says_when_the_limit_was_the_requests_own(what: dict[str, Any]) -> None:
    """Who reads that the model has 9 tokens looks for another model."""
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    with pytest.raises(InputTooLongError) as caught:
        prepare_one(preparer, EmbeddingInput(**what, max_tokens=9, truncation=Truncation.NONE))
    assert str(caught.value) == "The request allows 9 tokens for each input, and this one has 42."


def test_ids_of_the_models_own_vocabulary_are_taken_as_they_are() -> None:
    preparer = Preparer(model_info(wordpiece_tokenizer()))
    assert prepare_one(preparer, EmbeddingInput(token_ids=(2, 7, 3))).token_ids.tolist() == [2, 7, 3]
    cut = prepare_one(preparer, EmbeddingInput(token_ids=tuple(range(20))))
    assert cut.token_ids.tolist() == list(range(16))
    assert cut.num_dropped_tokens == 4
    kept_end = prepare_one(preparer, EmbeddingInput(token_ids=tuple(range(20)), truncation=Truncation.START))
    assert kept_end.token_ids.tolist() == list(range(4, 20))


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**63])
def test_an_id_outside_the_vocabulary_is_refused_by_name(token_id: int) -> None:
    """On CUDA it would fail an assertion on the device, and every later pass with it."""
    tokenizer = wordpiece_tokenizer()
    with pytest.raises(TokenIdError) as caught:
        prepare_one(Preparer(model_info(tokenizer)), EmbeddingInput(token_ids=(5, token_id)))
    assert str(caught.value) == f"token id {token_id} is not in the vocabulary of {len(tokenizer)} ids"


def test_stored_padding_and_truncation_of_a_tokenizer_are_ignored(minilm_folder: Path) -> None:
    """all-MiniLM-L6-v2 ships a tokenizer that pads to 128 and cuts at 128; the model reads 256."""
    stored = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    assert len(stored.encode("fox").ids) == 128
    tokenizer = wordpiece_tokenizer()
    info = model_info(tokenizer, tokenizer_json=stored.to_str(), max_tokens=256, vocab_size=30522)
    preparer = Preparer(info)
    assert prepare_one(preparer, EmbeddingInput(text="fox")).num_tokens == 3
    assert prepare_one(preparer, EmbeddingInput(text="fox " * 200)).num_tokens == 202
