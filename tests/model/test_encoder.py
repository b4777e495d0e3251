"""The encoder against sentence-transformers itself: same files, same texts, same vectors."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import BertModel

from model import EmbeddingInput, Features, Preparer
from model.encoder import TransformerEncoder, padded_buckets
from model.packing import PackingUnsupportedError, packed, packed_attention
from tests.model.checkpoints import ARCHITECTURES, CORPUS, build_checkpoint
from tests.model.leaking import whole_row_attention

TOLERANCE = 1e-5
TEXTS = [
    *CORPUS,
    "x",
    "fox " * 300,
    "日本語 " * 60,
    "A [SEP] in the text, and </s> too.",
    "Even <pad> or [PAD] may stand in a text.",
]


def embed(encoder: TransformerEncoder, texts: list[str], **fields: object) -> np.ndarray:
    prepared = Preparer(encoder.info).prepare([EmbeddingInput(text=text, **fields) for text in texts])
    assert all(isinstance(one, Features) for one in prepared), prepared
    return encoder.encode(prepared)


def reference(folder: Path, texts: list[str], **options: object) -> np.ndarray:
    # One at a time: in batches some architectures let padding leak into the result (MobileBERT: 0.1).
    return SentenceTransformer(str(folder), device="cpu").encode(texts, batch_size=1, **options)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TOLERANCE
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() >= 0.99999


def test_minilm_gives_sentence_transformers_vectors(minilm: TransformerEncoder, minilm_folder: Path) -> None:
    assert minilm.info.is_packed
    assert (minilm.info.dimension, minilm.info.max_tokens) == (384, 256)
    assert_same(embed(minilm, TEXTS), reference(minilm_folder, TEXTS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_every_architecture_and_pooling_gives_sentence_transformers_vectors(
    architecture: str, pooling: str, tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    folder = build_checkpoint(tmp_path, architecture, pooling=pooling)
    encoder = load_from(folder)
    assert encoder.info.is_packed == ARCHITECTURES[architecture].is_packed, encoder.info.packing_note
    assert_same(embed(encoder, TEXTS), reference(folder, TEXTS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_input_gets_the_same_vector_alone_and_among_others(
    architecture: str, tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    """Neighbours in a pass are strangers' texts: they must not leak into each other."""
    encoder = load_from(build_checkpoint(tmp_path, architecture))
    texts = TEXTS * 3
    random.Random(1).shuffle(texts)
    alone = np.stack([embed(encoder, [text])[0] for text in texts])
    assert np.abs(embed(encoder, texts) - alone).max() <= TOLERANCE


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", "weightedmean", ("cls", "mean")])
def test_rarer_poolings_and_a_dense_layer_give_sentence_transformers_vectors(
    pooling: str | tuple[str, ...], tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    folder = build_checkpoint(tmp_path, "bert", pooling=pooling, dense=True, normalize=False)
    encoder = load_from(folder)
    assert encoder.info.dimension == 24
    assert not encoder.info.is_normalized
    assert_same(embed(encoder, TEXTS), reference(folder, TEXTS))


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "weightedmean"])
def test_prompts_go_in_front_and_are_pooled_as_the_checkpoint_says(
    pooling: str, include_prompt: bool, tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    prompts = {"query": "search the river: ", "document": "", "clustering": "group the words: "}
    folder = build_checkpoint(
        tmp_path, "bert", pooling=pooling, include_prompt=include_prompt, prompts=prompts
    )
    encoder = load_from(folder)
    assert_same(embed(encoder, TEXTS, prompt_name="query"), reference(folder, TEXTS, prompt_name="query"))
    assert_same(embed(encoder, TEXTS, prompt_name="document"), reference(folder, TEXTS, prompt=""))
    assert_same(
        embed(encoder, TEXTS, prompt_name="clustering"), reference(folder, TEXTS, prompt_name="clustering")
    )
    assert_same(embed(encoder, TEXTS, instruction="find: "), reference(folder, TEXTS, prompt="find: "))


def test_the_default_prompt_is_used_when_nothing_is_said(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    prompts = {"query": "search the river: ", "all": "embed the words: "}
    folder = build_checkpoint(tmp_path, "bert", prompts=prompts, default_prompt_name="all")
    encoder = load_from(folder)
    assert_same(embed(encoder, TEXTS), reference(folder, TEXTS))
    # A model without a document prompt takes documents as they are, not with its default prompt.
    assert_same(embed(encoder, TEXTS, prompt_name="document"), reference(folder, TEXTS, prompt=""))


def test_padding_on_request_gives_the_same_vectors(
    minilm: TransformerEncoder, minilm_folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    padded = load_from(minilm_folder, pad_passes=True)
    assert not padded.info.is_packed
    assert np.abs(embed(padded, TEXTS) - embed(minilm, TEXTS)).max() <= TOLERANCE


def test_what_padding_costs_is_what_the_model_computes_beside_the_inputs(
    minilm: TransformerEncoder, minilm_folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    padded = load_from(minilm_folder, pad_passes=True)
    features = Preparer(padded.info).prepare([EmbeddingInput(text=text) for text in TEXTS])
    computed: list[int] = []
    transformer = padded._layers.backbone._transformer
    transformer.register_forward_pre_hook(
        lambda _module, _args, given: computed.append(given["input_ids"].numel()), with_kwargs=True
    )
    padded.encode(features)
    num_padding = sum(computed) - sum(one.num_tokens for one in features)
    assert padded.num_padding_tokens(features) == num_padding > 0
    assert minilm.num_padding_tokens(features) == 0


def test_half_precision_stays_close_to_single(
    minilm: TransformerEncoder, minilm_folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    half = load_from(minilm_folder, dtype="bfloat16")
    rows = embed(half, TEXTS)
    assert rows.dtype == np.float32
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert (rows * embed(minilm, TEXTS)).sum(1).min() > 0.995


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packing_is_refused_where_sequences_would_see_each_other(
    dtype: str,
    minilm_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_from: Callable[..., TransformerEncoder],
) -> None:
    """The trial at load is what stands between a leaking architecture and a client's vectors."""
    monkeypatch.setattr("model.packing._segment_attention", whole_row_attention)
    encoder = load_from(minilm_folder, dtype=dtype)
    assert not encoder.info.is_packed
    assert "packed differs from single by" in encoder.info.packing_note


def test_a_leak_is_not_hidden_by_one_dimension_of_huge_values(
    minilm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    load_from: Callable[..., TransformerEncoder],
) -> None:
    folder = Path(shutil.copytree(minilm_folder, tmp_path / "outlier"))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.5.output.LayerNorm.bias"][7] += 30
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_from(folder, dtype="bfloat16").info.is_packed
    monkeypatch.setattr("model.packing._segment_attention", whole_row_attention)
    assert not load_from(folder, dtype="bfloat16").info.is_packed


def test_a_mask_of_the_models_own_is_refused_rather_than_ignored() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with packed([3]), pytest.raises(PackingUnsupportedError, match="builds an attention mask of its own"):
        packed_attention(torch.nn.Identity(), states, states, states, torch.zeros(1, 1, 3, 3))
    with packed([3]), pytest.raises(PackingUnsupportedError, match="uses softcap"):
        packed_attention(torch.nn.Identity(), states, states, states, None, softcap=30.0)


def test_an_architecture_that_leaks_through_padding_shares_batches_by_equal_length_only(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    encoder = load_from(build_checkpoint(tmp_path, "mobilebert"))
    assert "only texts of equal length share a batch" in encoder.info.packing_note


def test_checkpoints_with_the_transformer_in_a_folder_of_its_own_and_in_shards(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    """How sentence-transformers wrote checkpoints before 2021, with a dropout module, and how large ones come."""
    folder = build_checkpoint(tmp_path, "bert")
    transformer = folder / "0_Transformer"
    transformer.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.move(folder / name, transformer / name)
    BertModel.from_pretrained(tmp_path / "plain").save_pretrained(transformer, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    dropout = {"idx": 9, "name": "9", "path": "9_Dropout", "type": "sentence_transformers.models.Dropout"}
    (folder / "9_Dropout").mkdir()
    (folder / "9_Dropout" / "config.json").write_text('{"dropout": 0.5}')
    (folder / "modules.json").write_text(json.dumps([*modules[:2], dropout, *modules[2:]]))
    assert len(list(transformer.glob("*.safetensors"))) > 1
    assert_same(embed(load_from(folder), TEXTS), reference(folder, TEXTS))


def test_lower_casing_that_only_the_transformer_module_asks_for(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    folder = build_checkpoint(tmp_path, "qwen3", pooling="lasttoken")
    config = json.loads((folder / "sentence_bert_config.json").read_text())
    shouting = [text.upper() for text in TEXTS]
    different = embed(load_from(folder), shouting)
    (folder / "sentence_bert_config.json").write_text(json.dumps(config | {"do_lower_case": True}))
    assert_same(embed(load_from(folder), shouting), reference(folder, shouting))
    assert np.abs(embed(load_from(folder), shouting) - different).max() > 0.01


@pytest.mark.parametrize("lengths", [[3], [5, 5, 5], [1, 100, 2, 99, 50, 1], list(range(1, 60))])
def test_padded_buckets_hold_every_sequence_once_and_little_padding(lengths: list[int]) -> None:
    buckets = list(padded_buckets(lengths))
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        padded = max(lengths[index] for index in bucket) * len(bucket)
        assert padded - sum(lengths[index] for index in bucket) <= 0.15 * padded
