"""Linear layers whose weights oneDNN has laid out for its kernels once, at load, instead of at every call.

A small pass is little else than small matrix products, and each of them repacks its weights. Packed ahead,
a MiniLM pass of 10 tokens takes 0.75 of the time, one of 512 tokens 0.9 (one thread, float32, AVX-512).

The price is a copy of these weights in each worker, while plain ones are pages of the file that all workers
share; so it is paid for small models only, and once for each weight
(docs/decisions/0004-prepacked-linear-layers.md). The operators are private, hence the guard: what cannot be
packed, or computes anything else than before, stays as it is.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.fused import fused_or_none, is_exact_gelu, linear_layers
from model.onednn import DTYPES, FAILURES, PackedWeight, is_close


class PrepackedLinear(nn.Module):
    """``nn.Linear`` for inference on CPU, with the exact GELU behind it where one is."""

    def __init__(self, linear: nn.Linear, *, with_gelu: bool = False) -> None:
        super().__init__()
        # Some architectures ask their layers for the weight's dtype (T5, Mamba). Never read, it is free:
        # its pages stay in the file.
        self.weight = linear.weight
        self.bias = cast("nn.Parameter | None", linear.bias)  # torch declares it as always there
        packed = PackedWeight(linear.weight, self.bias)
        self._compute = packed.product_gelu if with_gelu else packed.product

    def forward(self, states: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return self._compute(states)


@torch.inference_mode()
def prepack_linear_layers(transformer: nn.Module, *, max_bytes: int) -> int:
    """Replace the linear layers of a model on CPU, in place, and known encoder layers as a whole.

    Returns:
        How many linear layers were replaced: none where they are too large together, or torch cannot pack
        them.
    """
    if sum(layer.weight.nbytes for _, _, layer in _packable(transformer)) > max_bytes:
        return 0
    return _fuse_layers(transformer) + _prepack_rest(transformer)


def _packable(transformer: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Linear layers that may be packed, with the module that each is in and its name there."""
    # Exactly nn.Linear: a subclass may compute something of its own.
    return [
        (parent, name, layer)
        for parent in transformer.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype in DTYPES
    ]


def _fuse_layers(transformer: nn.Module) -> int:
    num_packed = 0
    for parent in list(transformer.modules()):
        for name, layer in list(parent.named_children()):
            if (fused := fused_or_none(layer)) is not None:
                setattr(parent, name, fused)
                num_packed += len(linear_layers(layer))
    return num_packed


def _prepack_rest(transformer: nn.Module) -> int:
    num_packed = 0
    for parent, name, layer in _packable(transformer):
        # BERT's line names them so: a layer and the activation behind it.
        has_gelu = name == "dense" and is_exact_gelu(getattr(parent, "intermediate_act_fn", None))
        packed = _packed_or_none(layer, with_gelu=has_gelu)
        if packed is None:
            continue
        setattr(parent, name, packed)
        if has_gelu:
            parent.intermediate_act_fn = nn.Identity()
        num_packed += 1
    return num_packed


def _packed_or_none(layer: nn.Linear, *, with_gelu: bool) -> PrepackedLinear | None:
    states = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0)).to(
        layer.weight.dtype
    )
    try:
        packed = PrepackedLinear(layer, with_gelu=with_gelu)
        plain = layer(states)
        return packed if is_close(packed(states), F.gelu(plain) if with_gelu else plain) else None
    except FAILURES:
        return None
