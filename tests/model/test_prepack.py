"""Linear layers laid out ahead compute what they computed before, or stay as they are."""

import pytest
import torch
from torch import nn
from transformers.activations import GELUActivation

from model.prepack import PrepackedLinear, prepack_linear_layers
from tests.model.cpus import needs_bfloat16


def small_network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8, bias=False)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("num_tokens", [1, 7, 300])
def test_replaced_layers_give_what_the_plain_ones_gave(dtype: torch.dtype, num_tokens: int) -> None:
    plain, packed = small_network(dtype), small_network(dtype)
    assert prepack_linear_layers(packed, max_bytes=10**6) == 2
    assert isinstance(packed[0], PrepackedLinear)
    states = torch.randn(1, num_tokens, 32).to(dtype)
    with torch.inference_mode():
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(packed(states), plain(states), atol=tolerance, rtol=tolerance)


def test_a_model_above_the_limit_keeps_its_weights_mapped() -> None:
    network = small_network()
    num_bytes = (32 * 64 + 64 * 8) * 4
    assert prepack_linear_layers(network, max_bytes=num_bytes - 1) == 0
    assert type(network[0]) is nn.Linear
    assert prepack_linear_layers(network, max_bytes=num_bytes) == 2


def test_a_layer_stays_plain_where_the_private_operator_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_arguments: object, **_options: object) -> None:
        raise AttributeError("no such operator in this torch")

    monkeypatch.setattr("model.prepack.PrepackedLinear.__init__", missing)
    network = small_network()
    assert prepack_linear_layers(network, max_bytes=10**6) == 0
    assert type(network[0]) is nn.Linear


def test_a_layer_stays_plain_where_the_operator_computes_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.prepack.PrepackedLinear.forward", lambda _self, states: states[..., :8] * 0)
    network = nn.Sequential(nn.Linear(32, 8))
    assert prepack_linear_layers(network, max_bytes=10**6) == 0
    assert type(network[0]) is nn.Linear


def test_a_subclass_of_linear_is_left_alone() -> None:
    class Doubling(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    network = nn.Sequential(Doubling(8, 8))
    assert prepack_linear_layers(network, max_bytes=10**6) == 0


class Intermediate(nn.Module):
    """A layer and its activation as BERT's line has them."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Linear(32, 64)
        self.intermediate_act_fn = activation

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(states))


@pytest.mark.parametrize(
    ("activation", "is_fused"),
    [(GELUActivation(), True), (nn.GELU(), True), (nn.GELU(approximate="tanh"), False), (nn.ReLU(), False)],
)
def test_an_exact_gelu_is_computed_with_its_layer_and_any_other_activation_apart(
    activation: nn.Module, is_fused: bool
) -> None:
    plain, packed = Intermediate(activation), Intermediate(activation)
    assert prepack_linear_layers(packed, max_bytes=10**6) == 1
    assert isinstance(packed.intermediate_act_fn, nn.Identity) == is_fused
    states = torch.randn(1, 50, 32)
    with torch.inference_mode():
        torch.testing.assert_close(packed(states), plain(states), atol=1e-6, rtol=1e-5)
