"""Which GME checkpoints load, and which are refused: the gates in front of two towers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig, Qwen2VLModel

from model import CheckpointError, EmbeddingInput
from model.families import gme as gme_family
from model.worker.protocol import ImageOptions
from tests.model.conftest import load
from tests.model.gme_cases import FOLDER, TOLERANCE, cases, embed

Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to be changed. Its name says what it is, as a hub id would."""
    return Path(shutil.copytree(FOLDER, tmp_path / "tiny-gme"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def renamed(weights: Weights, **prefixes: str) -> Weights:
    """Weights whose names begin with another word."""
    return {
        prefixes[name.partition(".")[0]] + "." + name.partition(".")[2]: tensor
        for name, tensor in weights.items()
    }


# The layouts in which checkpoints of GME and of its fine-tunes are stored.


def as_published(folder: Path) -> None:
    """Before transformers 4.52: ``visual.*`` and ``model.*``."""


def with_an_output_layer(folder: Path) -> None:
    """As the 7B model is published: its output layer is not tied to the embedding."""
    edit_weights(folder, lambda weights: weights | {"lm_head.weight": torch.zeros(448, 64)})


def saved_anew(folder: Path) -> None:
    """By ``Qwen2VLForConditionalGeneration.save_pretrained`` of 4.52 and later."""
    edit_weights(
        folder, lambda weights: renamed(weights, visual="model.visual", model="model.language_model")
    )


def saved_as_the_model_alone(folder: Path) -> None:
    """By ``Qwen2VLModel.save_pretrained`` of 5, whose configuration is nested, too."""
    raw = json.loads((folder / "config.json").read_text())
    config = Qwen2VLConfig(**{key: raw[key] for key in raw if key not in ("auto_map", "model_type")})
    model = Qwen2VLModel.from_pretrained(folder, config=config, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    "lay_out", [as_published, with_an_output_layer, saved_anew, saved_as_the_model_alone]
)
def test_every_layout_of_the_weights_gives_the_same_vectors(lay_out: Callable[[Path], None], folder: Path):
    lay_out(folder)
    encoder = load(folder)
    assert encoder.info.family == "gme"
    some = [cases()[0], cases()[11], cases()[17]]  # a text, an image, both
    rows = embed(encoder, *(case.input for case in some))
    assert np.abs(rows - np.stack([case.vector for case in some])).max() <= TOLERANCE


@pytest.mark.parametrize("lay_out", [as_published, saved_anew])
@pytest.mark.parametrize(
    ("lost", "reported"),
    [
        ("blocks.1.attn.qkv.bias", r"visual\.blocks\.1\.attn\.qkv\.bias"),
        ("layers.1.mlp.up_proj.weight", r"language_model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_a_missing_weight_of_either_tower_is_refused_by_name(
    lost: str, reported: str, lay_out: Callable[[Path], None], folder: Path
):
    """transformers would draw it at random, and serve on."""
    lay_out(folder)
    edit_weights(folder, lambda weights: {name: weights[name] for name in weights if not name.endswith(lost)})
    with pytest.raises(CheckpointError, match=rf"lacks 1 weights of Qwen2VLModel, the first is {reported}$"):
        load(folder)


@pytest.mark.parametrize(
    "extra", ["visual.adapter.weight", "model.layers.0.mlp.experts.weight", "score.weight"]
)
def test_a_weight_without_a_place_is_refused_by_name(extra: str, folder: Path):
    edit_weights(folder, lambda weights: weights | {extra: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="has 1 weights that Qwen2VLModel has no place for"):
        load(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path):
    edit_weights(folder, lambda weights: weights | {"model.norm.weight": torch.zeros(32)})
    with pytest.raises(
        CheckpointError,
        match=r"has 1 weights of another shape .* the first is language_model\.norm\.weight, \[32\] instead of \[64\]",
    ):
        load(folder)


# Whose code runs.


def test_the_checkpoints_own_code_never_runs(folder: Path, tmp_path: Path):
    evidence = tmp_path / "it-ran"
    for name in ("modeling_gme_qwen2vl", "custom_st", "tokenization_evil", "evil_processor"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(evidence)!r}).touch()\n")
    own_code = {
        "AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL",
        "AutoConfig": "modeling_gme_qwen2vl.GmeQwen2VLConfig",
        "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.EvilFast"],
        "AutoImageProcessor": "evil_processor.Evil",
    }
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        edit_json(folder / file, auto_map=own_code)
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "path": "", "type": "custom_st.Transformer"}])
    )
    rows = embed(load(folder), cases()[0].input)
    assert np.abs(rows[0] - cases()[0].vector).max() <= TOLERANCE
    # A class that only the checkpoint knows: what tokenizer.json describes is read without it.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Evil")
    assert np.array_equal(embed(load(folder), cases()[0].input), rows)
    assert not evidence.exists()


def test_pickled_weights_are_never_loaded(folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights in pickles are never loaded"):
        load(folder)


# What it is.


@pytest.fixture
def unnamed(folder: Path) -> Path:
    """A Qwen2-VL that nowhere says it is GME."""
    edit_json(folder / "config.json", auto_map={})
    return folder.rename(folder.with_name("Qwen2-VL-2B-Instruct"))


def test_a_chat_model_is_refused_and_the_refusal_says_how_to_insist(unnamed: Path):
    with pytest.raises(
        CheckpointError, match=r"Qwen2-VL-2B-Instruct is a Qwen2-VL that neither .* calls GME;.*--family gme$"
    ):
        load(unnamed)


def test_the_family_may_be_named_for_a_fine_tune_of_another_name(unnamed: Path):
    rows = embed(load(unnamed, family="gme"), cases()[0].input)
    assert np.abs(rows[0] - cases()[0].vector).max() <= TOLERANCE


def test_a_checkpoint_is_known_by_its_code_whatever_it_is_called(folder: Path):
    renamed = folder.rename(folder.with_name("checkpoint-1200"))
    assert load(renamed).info.family == "gme"


@pytest.mark.parametrize("name", ["qwen2-vl-7b-segmentation", "qwen2-vl-augmented", "Qwen2-VL-Pragmenta"])
def test_three_letters_within_a_word_do_not_say_gme(name: str, unnamed: Path):
    edit_json(unnamed / "config.json", auto_map={"AutoModel": "modeling_segment.SegmentQwen2VL"})
    with pytest.raises(CheckpointError, match=r"neither its name nor its config\.json calls GME"):
        load(unnamed.rename(unnamed.with_name(name)))


@pytest.mark.parametrize("name", ["gme-Qwen2-VL-2B-Instruct", "my_GME_2b", "GME2"])
def test_a_word_by_itself_in_the_name_says_gme(name: str, unnamed: Path):
    assert gme_family.matches(unnamed, name)
    assert load(unnamed.rename(unnamed.with_name(name))).info.family == "gme"


def test_a_qwen2_vl_with_modules_of_its_own_is_no_gme(unnamed: Path):
    """There are other embedders of that build, with other templates."""
    (unnamed / "modules.json").write_text(json.dumps([{"path": "", "type": "custom_st.Transformer"}]))
    with pytest.raises(CheckpointError, match=r"needs the module custom_st\.Transformer"):
        load(unnamed)


def test_another_architecture_cannot_be_read_as_gme(folder: Path):
    edit_json(folder / "config.json", model_type="qwen2_5_vl")
    with pytest.raises(CheckpointError, match="holds no Qwen2-VL, which GME is built on"):
        load(folder, family="gme")


def test_a_tokenizer_without_the_templates_tokens_is_refused_by_name(folder: Path):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("vision_start", "vision_begin")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config.replace("vision_start", "vision_begin"))
    with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|vision_start\|>"):
        load(folder)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_start|>"])
def test_a_tokenizer_that_takes_the_templates_tokens_for_words_is_refused(token: str, folder: Path):
    """Written in a text, they would become the tokens themselves: a place for an image that is not there."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for one in (*config["added_tokens_decoder"].values(), *tokenizer["added_tokens"]):
        one["special"] = one["special"] and one["content"] != token
    config["additional_special_tokens"].remove(token)
    edit_json(folder / "tokenizer_config.json", **config)
    edit_json(folder / "tokenizer.json", added_tokens=tokenizer["added_tokens"])
    with pytest.raises(
        CheckpointError, match=f"the tokenizer does not mark {re.escape(token)} as special, so that any text"
    ):
        load(folder)


# Bounds on images.


def test_bounds_on_image_tokens_that_contradict_each_other_are_refused():
    with pytest.raises(CheckpointError) as caught:
        load(FOLDER, images=ImageOptions(max_tokens=100))
    assert str(caught.value) == (
        "images have 256 tokens at least (the model's own bound) and 100 at most (--max-image-tokens); lower "
        "--min-image-tokens, or raise --max-image-tokens"
    )


def test_bounds_on_image_tokens_are_read_from_the_configuration(folder: Path):
    edit_json(folder / "config.json", min_image_tokens=16, max_image_tokens=64, max_length=512)
    info = load(folder).info
    assert info.images is not None
    assert (info.images.spec.resizes[-1].min_tokens, info.images.spec.resizes[-1].max_tokens) == (16, 64)
    assert info.max_tokens == 512


def test_an_image_that_could_never_be_read_is_refused_at_load():
    """Not by every request with a large image, one by one."""
    template_tokens = 25  # the tiny tokenizer's, with the two tokens around the image
    with pytest.raises(
        CheckpointError,
        match=f"an image of 1790 tokens is an input of {1_790 + template_tokens}, and tiny-gme reads 1800; "
        "raise --max-tokens, or lower --max-image-tokens to 1775$",
    ):
        load(FOLDER, images=ImageOptions(max_tokens=1_790))
    with pytest.raises(CheckpointError, match=r"or lower --max-image-tokens and --min-image-tokens to 75$"):
        load(FOLDER, max_tokens=100)
    with pytest.raises(CheckpointError, match=r"and tiny-gme reads 20; raise --max-tokens$"):
        load(FOLDER, max_tokens=20)
    smaller = load(FOLDER, max_tokens=100, images=ImageOptions(min_tokens=75, max_tokens=75))
    assert embed(smaller, EmbeddingInput(text="a")).shape == (1, 64)
    larger = load(FOLDER, images=ImageOptions(max_tokens=1_790), max_tokens=2_000)
    assert embed(larger, EmbeddingInput(text="a")).shape == (1, 64)
