"""Weights in 8 bits: close to what they were, small, and only where they may be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model import EmbeddingInput
from model.encoder import TransformerEncoder
from model.quantize import Int8Linear, quantize_linear_layers
from model.worker.protocol import Quantization
from tests.model.checkpoints import CORPUS, build_checkpoint
from tests.model.conftest import load
from tests.model.gme_cases import FOLDER, cases, embed, expected

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def linear(dtype: torch.dtype = torch.float32, *, rows: int = 48, columns: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, rows, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_each_weight_is_off_by_half_a_step_of_its_row_at_most(dtype: torch.dtype):
    plain = linear(dtype)
    plain.weight[3] *= 1e-4  # a small row has a small step
    quantized = Int8Linear(plain)
    restored = quantized.weight.float() * quantized.scale.float()
    step = plain.weight.float().abs().amax(dim=1, keepdim=True) / 127
    off = (restored - plain.weight.float()).abs() / step
    assert quantized.weight.dtype == torch.int8
    # In half precision the scale is rounded, so the largest weights may lie a little outside the codes. In
    # float16 the scale of the small row is one of the coarse numbers next to zero.
    assert off.max() <= {torch.float32: 0.501, torch.bfloat16: 0.8, torch.float16: 3.0}[dtype]
    assert off.mean() <= 0.3


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_a_layer_gives_nearly_what_it_gave(dtype: torch.dtype):
    plain = linear(dtype)
    states = torch.randn(2, 5, 64).to(dtype)
    ours = Int8Linear(plain)(states)
    assert (ours.dtype, ours.shape) == (dtype, (2, 5, 48))
    cosines = torch.cosine_similarity(ours.float(), plain(states).float(), dim=-1)
    assert cosines.min() > 0.9998


@torch.inference_mode()
def test_large_states_stay_finite_in_half_precision():
    """Activations of some hundreds are common in language models; multiplied by codes of 127 they overflow."""
    plain = linear(torch.float16, columns=4_096)
    states = torch.full((1, 4_096), 300.0, dtype=torch.float16)
    assert torch.isfinite(plain(states)).all()
    assert torch.isfinite(Int8Linear(plain)(states)).all()
    assert not torch.isfinite(states @ Int8Linear(plain).weight.half().abs().T).all()


@torch.inference_mode()
def test_a_row_of_zeros_stays_one():
    plain = linear()
    plain.weight[2] = 0
    plain.bias.zero_()
    assert Int8Linear(plain)(torch.ones(1, 64))[0, 2] == 0


def test_only_layers_of_exactly_that_class_are_replaced():
    class Gated(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states).tanh()

    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.Embedding(4, 4)), Gated(4, 4), nn.Linear(4, 4, bias=False)
    )
    assert quantize_linear_layers(model) == 2
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds == ["Sequential", "Sequential", "Int8Linear", "Embedding", "Gated", "Int8Linear"]


def test_quantized_layers_move_to_another_device():
    """They are quantized before they are moved, so that the device never holds the full weights."""
    model = nn.Sequential(linear())
    quantize_linear_layers(model)
    model.to("meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gme_stays_close_to_the_reference(dtype: str):
    some = [0, 6, 11, 14, 17]  # texts, an image, both
    encoder = load(FOLDER, quantization=Quantization.INT8, dtype=dtype)
    rows = embed(encoder, *(cases()[index].input for index in some))
    cosines = (rows * expected()[some]).sum(axis=1)
    assert cosines.min() >= {"float32": 0.999, "float16": 0.999, "bfloat16": 0.997}[dtype]
    # It is in effect: nothing would be saved by what changes nothing.
    assert cosines.max() < 1 - 1e-6


def test_the_vision_tower_is_left_alone_and_packing_holds():
    encoder = load(FOLDER, quantization=Quantization.INT8)
    towers = encoder._layers.backbone
    assert not any(isinstance(module, Int8Linear) for module in towers._vision.modules())
    assert sum(isinstance(module, Int8Linear) for module in towers._text.modules()) == 2 * 7
    assert encoder.info.packing_note.startswith("packed equals single")
    assert encoder.info.num_parameters == load(FOLDER).info.num_parameters
    some = [cases()[11].input, cases()[0].input]
    assert np.abs(embed(encoder, *some)[1] - embed(encoder, some[1])[0]).max() <= 2e-6


@pytest.mark.parametrize("architecture", ["bert", "qwen3", "t5", "mpnet"])
def test_text_models_are_quantized_whole(
    architecture: str, tmp_path: Path, load_from: Callable[..., TransformerEncoder]
):
    folder = build_checkpoint(tmp_path, architecture)
    inputs = [EmbeddingInput(text=text) for text in CORPUS]
    plain, quantized = load_from(folder), load_from(folder, quantization=Quantization.INT8)
    assert quantized.info.is_packed == plain.info.is_packed
    cosines = (embed(plain, *inputs) * embed(quantized, *inputs)).sum(axis=1)
    assert 0.999 <= cosines.min() <= cosines.max() < 1 - 1e-7
