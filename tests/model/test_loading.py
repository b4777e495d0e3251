"""The load gates: each stops one way of serving wrong vectors, and says which file and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model import CheckpointError
from model.encoder import TransformerEncoder
from tests.model.checkpoints import build_checkpoint


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("sound"), "bert", dense=True)


@pytest.fixture
def folder(sound_folder: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound_folder, tmp_path / "st"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_missing_weight_is_refused_by_name(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"lacks 1 weights of BertModel, the first is encoder\.layer\.1\.output\.dense\.weight",
    ):
        load_from(folder)


def test_a_weight_without_a_place_inside_the_encoder_is_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    """Experts of a mixture that the class here does not have would be dropped without a word."""
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.experts.0.weight"] = weights["encoder.layer.1.output.dense.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"no place for, the first is encoder\.layer\.1\.experts\.0\.weight"
    ):
        load_from(folder)


def test_an_unused_head_is_no_obstacle(folder: Path, load_from: Callable[..., TransformerEncoder]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.bias"] = weights["embeddings.LayerNorm.bias"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_from(folder).info.dimension == 24


@pytest.mark.parametrize("subfolder", ["", "2_Dense"])
def test_pickled_weights_are_never_loaded(
    folder: Path, subfolder: str, load_from: Callable[..., TransformerEncoder]
) -> None:
    (folder / subfolder / "model.safetensors").rename(folder / subfolder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights in pickles are never loaded"):
        load_from(folder)


def test_the_checkpoints_own_code_never_runs(
    folder: Path, tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    evidence = tmp_path / "it-ran"
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(evidence)!r}).touch()\n")
    edit_json(
        folder / "config.json",
        auto_map={"AutoModel": "modeling_evil.EvilModel", "AutoConfig": "modeling_evil.EvilConfig"},
    )
    assert load_from(folder).info.architecture == "BertModel"
    edit_json(folder / "config.json", model_type="evil")
    with pytest.raises(CheckpointError, match="a checkpoint's own code is never run here"):
        load_from(folder)
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("module_type", "message"),
    [
        (
            "sentence_transformers.models.CNN",
            "needs the module sentence_transformers.models.CNN, which is not served",
        ),
        (
            "custom_st.Transformer",
            "needs the module custom_st.Transformer, which is code of the checkpoint's own",
        ),
    ],
)
def test_an_unknown_module_is_refused_by_name(
    folder: Path, module_type: str, message: str, load_from: Callable[..., TransformerEncoder]
) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(1, {"idx": 9, "name": "9", "path": "9_Extra", "type": module_type})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=message):
        load_from(folder)


def test_an_unknown_pooling_mode_is_refused_by_name(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="attention")
    with pytest.raises(CheckpointError, match="pools by 'attention'"):
        load_from(folder)


def test_an_activation_that_is_not_torchs_own_is_refused_by_name(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    """sentence-transformers would fall back to tanh with a warning, and give other vectors."""
    edit_json(folder / "2_Dense" / "config.json", activation_function="evil.Gate")
    with pytest.raises(
        CheckpointError, match=r"uses the activation 'evil\.Gate'; served are torch\.nn's own"
    ):
        load_from(folder)


def test_a_chat_template_checkpoint_is_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    edit_json(folder / "sentence_bert_config.json", modality_config={"message": {"method": "forward"}})
    with pytest.raises(CheckpointError, match="renders its inputs through a chat template"):
        load_from(folder)


def test_a_generator_without_modules_is_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    (folder / "modules.json").unlink()
    edit_json(folder / "config.json", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(CheckpointError, match=r"holds a generator \(Qwen2ForCausalLM\) and no modules\.json"):
        load_from(folder)


def test_a_plain_encoder_is_pooled_by_its_mean(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    (folder / "modules.json").unlink()
    info = load_from(folder).info
    assert (info.pooling, info.dimension, info.is_normalized) == ("mean", 32, False)


def test_a_tokenizer_of_another_model_is_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:100].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", vocab_size=100)
    with pytest.raises(CheckpointError, match="the model embeds 100; files of two models are mixed"):
        load_from(folder)


def test_an_unknown_dtype_is_refused(folder: Path, load_from: Callable[..., TransformerEncoder]) -> None:
    with pytest.raises(CheckpointError, match="dtype 'int7' is not one of float32, bfloat16, float16"):
        load_from(folder, dtype="int7")


def test_the_fingerprint_follows_everything_that_changes_a_vector(
    sound_folder: Path, folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    original = load_from(sound_folder).info.fingerprint
    assert load_from(folder).info.fingerprint == original, "a copy of the files is the same model"
    assert load_from(folder, dtype="bfloat16").info.fingerprint != original
    assert load_from(folder, max_tokens=20).info.fingerprint != original
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="cls")
    changed_pooling = load_from(folder).info.fingerprint
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    weights["linear.bias"] += 0.01
    save_file(weights, folder / "2_Dense" / "model.safetensors")
    changed_weights = load_from(folder).info.fingerprint
    assert len({original, changed_pooling, changed_weights}) == 3


def test_stages_are_told_while_loading(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from model.loading import load_encoder
    from model.worker import LoadOptions

    stages: list[str] = []
    load_encoder(LoadOptions(folder=str(folder), source="x"), stages.append)
    assert stages[0] == "reading the checkpoint"
    assert "loading weights 100%" in stages
    assert stages[-1] == "warming up"
    assert capfd.readouterr().out == ""


def test_one_changed_weight_anywhere_changes_the_fingerprint(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    """Vectors of before and after must never meet in one index, however small the retraining was."""
    original = load_from(folder).info.fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.self.query.weight"][3, 5] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_from(folder).info.fingerprint != original


@pytest.mark.parametrize(
    "key", ["bert.encoder.layer.0.adapter.weight", "encoder.layer.0.query.lora_A.weight", "lora_A.weight"]
)
def test_weights_of_an_adapter_are_not_left_out_in_silence(
    key: str, folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[key] = weights["embeddings.LayerNorm.bias"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="no place for"):
        load_from(folder)


def test_an_adapters_folder_is_refused(folder: Path, load_from: Callable[..., TransformerEncoder]) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter; merge it"):
        load_from(folder)


def test_a_dimension_other_than_the_files_say_is_refused(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    folder = build_checkpoint(tmp_path, "bert")
    edit_json(folder / "1_Pooling" / "config.json", embedding_dimension=999)
    with pytest.raises(CheckpointError, match="gives vectors of 32, but its own files say 999"):
        load_from(folder)


def test_a_normalisation_at_another_place_is_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    (folder / "3_Normalize").mkdir(exist_ok=True)
    (folder / "3_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')
    with pytest.raises(
        CheckpointError, match="reads 'token_embeddings' and writes 'token_embeddings' at a place"
    ):
        load_from(folder)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"processing_kwargs": {"text": {"max_length": 20}}}, "sets processing_kwargs"),
        ({"query_expansion": "mask"}, "sets query_expansion"),
        ({"module_output_name": "sentence_embedding"}, "does not read its transformer's last hidden state"),
        ({"transformer_task": "fill-mask"}, "uses its transformer for 'fill-mask'"),
    ],
)
def test_a_setting_that_would_change_vectors_is_refused_by_name(
    setting: dict[str, object], message: str, folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    edit_json(folder / "sentence_bert_config.json", **setting)
    with pytest.raises(CheckpointError, match=message):
        load_from(folder)


def test_a_checkpoint_without_any_limit_asks_for_one(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    folder = build_checkpoint(tmp_path, "t5")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not say how many tokens it reads; give --max-tokens"):
        load_from(folder)
    assert load_from(folder, max_tokens=64).info.max_tokens == 64


def test_a_trial_that_crashes_is_a_refusal_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, load_from: Callable[..., TransformerEncoder]
) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise IndexError("index 4 is out of bounds")

    monkeypatch.setattr("transformers.BertModel.forward", crash)
    with pytest.raises(
        CheckpointError, match=r"a trial pass failed \(IndexError: index 4 is out of bounds\)"
    ):
        load_from(folder)


def test_shorter_dimensions_than_native_are_offered_and_longer_refused(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    assert load_from(folder, matryoshka_dimensions=(8, 16, 24)).info.matryoshka_dimensions == (16, 8)
    with pytest.raises(CheckpointError, match="gives vectors of 24, not of 32"):
        load_from(folder, matryoshka_dimensions=(32,))


def test_dtype_auto_is_single_precision_on_cpu(
    folder: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    assert load_from(folder, dtype="auto").info.dtype == "float32"


def test_half_precision_is_refused_where_it_overflows(
    tmp_path: Path, load_from: Callable[..., TransformerEncoder]
) -> None:
    with pytest.raises(CheckpointError, match="t5 models overflow in float16"):
        load_from(build_checkpoint(tmp_path, "t5"), dtype="float16")
