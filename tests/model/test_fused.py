"""A fused layer computes what the layer it stands for computes, or that layer stays."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

from model.fused import PIECE_TOKENS, FusedLayer, fused_or_none
from model.interruption import Safepoints, safepoints
from model.packing import PACKED_ATTENTION, packed
from model.prepack import prepack_linear_layers
from tests.model.cpus import needs_bfloat16

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
MODELS = {BertModel: BertConfig, RobertaModel: RobertaConfig, XLMRobertaModel: XLMRobertaConfig}


def model_of(model_class: Any = BertModel, **options: Any) -> Any:
    torch.manual_seed(0)
    return model_class(MODELS[model_class](**(SIZES | options)), add_pooling_layer=False).eval()


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@torch.inference_mode()
def test_a_fused_model_gives_what_the_plain_one_gives(model_class: Any, dtype: torch.dtype) -> None:
    """Padded, with a mask: a packed row is not the only way that a layer is called."""
    plain, fused = model_of(model_class).to(dtype), model_of(model_class).to(dtype)
    prepack_linear_layers(fused, max_bytes=10**6)
    assert [type(layer) for layer in fused.encoder.layer] == [FusedLayer] * 2
    ids = torch.randint(5, 50, (3, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4], [7]])).long()
    actual, expected = (model(ids, attention_mask=mask).last_hidden_state for model in (fused, plain))
    tolerance = 1e-5 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def test_a_long_row_is_computed_in_pieces_that_can_be_left() -> None:
    """Otherwise the longer a pass is, the longer a query waits for the end of a product."""
    plain, fused = (model_of(max_position_embeddings=PIECE_TOKENS * 3) for _ in range(2))
    prepack_linear_layers(fused, max_bytes=10**6)
    ids = torch.randint(5, 50, (1, 2 * PIECE_TOKENS + 100))
    places: list[int] = []
    with safepoints(Safepoints(on_safepoint=lambda: places.append(1))):
        actual = fused(ids).last_hidden_state
    torch.testing.assert_close(actual, plain(ids).last_hidden_state, atol=1e-5, rtol=1e-5)
    # One before attention, and two in each of three pieces.
    assert len(places) == 2 * (1 + 2 * 3)


@torch.inference_mode()
def test_a_fused_model_follows_when_it_is_switched_to_packed_rows() -> None:
    """The layers are fused before packing is tried, and the trial has to be one of the fused layers."""
    plain, fused = model_of(), model_of()
    prepack_linear_layers(fused, max_bytes=10**6)
    fused.set_attn_implementation(PACKED_ATTENTION)
    sequences = [np.arange(5, 12), np.arange(20, 24)]
    row = torch.from_numpy(np.concatenate(sequences))[None]
    positions = torch.from_numpy(np.concatenate([np.arange(len(one)) for one in sequences]))[None]
    with packed([len(one) for one in sequences]) as segments:
        together = fused(row, position_ids=positions).last_hidden_state[0]
    assert segments.num_attention_calls == 2
    alone = torch.cat([plain(torch.from_numpy(one)[None]).last_hidden_state[0] for one in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_every_weight_of_a_fused_model_counts_as_packed_once() -> None:
    model = model_of()
    assert prepack_linear_layers(model, max_bytes=10**6) == 2 * 6
    assert not [module for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"is_decoder": True},
        {"chunk_size_feed_forward": 4},
    ],
)
def test_a_layer_with_other_options_is_not_fused(options: dict[str, Any]) -> None:
    assert fused_or_none(model_of(**options).encoder.layer[0]) is None


def test_a_layer_in_training_or_with_a_part_of_somebody_else_is_not_fused() -> None:
    class Doubling(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    assert fused_or_none(model_of().train().encoder.layer[0]) is None
    layer = model_of().encoder.layer[0]
    layer.output.dense = Doubling(48, 32)
    assert fused_or_none(layer) is None


@pytest.mark.parametrize("is_fast", [False, True])
@torch.inference_mode()
def test_both_ways_to_the_gelu_compute_the_same(monkeypatch: pytest.MonkeyPatch, is_fast: bool) -> None:
    """Which one a machine takes depends on its cores."""
    monkeypatch.setattr("model.onednn._ONEDNN_GELU_IS_FAST", is_fast)
    assert isinstance(fused_or_none(model_of().encoder.layer[0]), FusedLayer)


@pytest.mark.parametrize("operation", ["product", "product_gelu", "product_plus"])
@torch.inference_mode()
def test_a_layer_stays_where_an_operator_computes_something_else(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    from model.onednn import PackedWeight

    right = getattr(PackedWeight, operation)
    monkeypatch.setattr(PackedWeight, operation, lambda *arguments: right(*arguments) * 1.01)
    assert fused_or_none(model_of().encoder.layer[0]) is None


@torch.inference_mode()
def test_a_layer_stays_where_the_private_operator_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object) -> None:
        raise AttributeError("no such operator in this torch")

    monkeypatch.setattr("model.onednn.PackedWeight.__init__", missing)
    assert fused_or_none(model_of().encoder.layer[0]) is None
