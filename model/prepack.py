"""Linear layers whose weights oneDNN has laid out for its kernels once, at load, instead of at every call.

A small pass is little else than small matrix products, and each of them repacks its weights. Packed ahead,
a MiniLM pass of 10 tokens takes 0.75 of the time, one of 512 tokens 0.9 (one thread, float32, AVX-512).

The price is a copy of these weights in each worker, while plain ones are pages of the file that all workers
share; so it is paid for small models only (docs/decisions/0004-prepacked-linear-layers.md). The operators
are the ones torch's own compiler freezes models with. They are private, hence the guard: a layer that
cannot be packed, or computes anything else than before, stays as it is.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation

# Sizes of passes vary; the layout is chosen for one in the middle.
_TYPICAL_TOKENS = 256
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class PrepackedLinear(nn.Module):
    """``nn.Linear`` for inference on CPU, with the exact GELU behind it where one is."""

    def __init__(self, linear: nn.Linear, *, with_gelu: bool = False) -> None:
        super().__init__()
        # Some architectures ask their layers for the weight's dtype (T5, Mamba). Never read, it is free:
        # its pages stay in the file.
        self.weight = linear.weight
        self.bias = cast("nn.Parameter | None", linear.bias)  # torch declares it as always there
        self._packed_weight = torch.ops.mkldnn._reorder_linear_weight(
            linear.weight.detach().clone(), _TYPICAL_TOKENS
        )

        self._activation = ("gelu", "none") if with_gelu else ("none", "")

    def forward(self, states: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        name, algorithm = self._activation
        return torch.ops.mkldnn._linear_pointwise(states, self._packed_weight, self.bias, name, [], algorithm)


@torch.inference_mode()
def prepack_linear_layers(transformer: nn.Module, *, max_bytes: int) -> int:
    """Replace the linear layers of a model on CPU, in place.

    Returns:
        How many were replaced: none where they are too large together, or torch cannot pack them.
    """
    # Exactly nn.Linear: a subclass may compute something of its own.
    layers = [
        (parent, name, layer)
        for parent in transformer.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype in _TOLERANCE
    ]
    if sum(layer.weight.nbytes for _, _, layer in layers) > max_bytes:
        return 0
    num_packed = 0
    for parent, name, layer in layers:
        # BERT's line names them so: a layer and the activation behind it.
        has_gelu = name == "dense" and _is_exact_gelu(getattr(parent, "intermediate_act_fn", None))
        packed = _packed_or_none(layer, with_gelu=has_gelu)
        if packed is None:
            continue
        setattr(parent, name, packed)
        if has_gelu:
            parent.intermediate_act_fn = nn.Identity()
        num_packed += 1
    return num_packed


def _is_exact_gelu(activation: object) -> bool:
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return isinstance(activation, GELUActivation) and activation.act is F.gelu


def _packed_or_none(layer: nn.Linear, *, with_gelu: bool) -> PrepackedLinear | None:
    states = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).to(
        layer.weight.dtype
    )
    try:
        packed = PrepackedLinear(layer, with_gelu=with_gelu)
        plain = layer(states)
        actual, expected = packed(states).float(), (F.gelu(plain) if with_gelu else plain).float()
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    is_equal = (actual - expected).abs().max() <= _TOLERANCE[layer.weight.dtype] * expected.abs().max()
    return packed if is_equal else None
