"""Linear layers with weights in 8 bits: half the memory of half precision, for some speed and a small drift.

Each row of a weight, which makes one output, is stored as int8 with a scale of its own (symmetric, to the
nearest), and is widened again while its layer runs. Widened first and multiplied then: the other order, which
torchao 0.18 takes for weights alone, multiplies codes of up to 127 in the model's precision, and leaves
float16's range where the layer itself does not (docs/decisions/0020-int8-by-hand.md).

Law of this file: exactly ``nn.Linear`` is replaced. A subclass may compute something of its own.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MAX_CODE = 127


class Int8Linear(nn.Module):
    """``nn.Linear`` for inference, with int8 weights. Computes in the precision of what it is given."""

    scale: Tensor
    """``[out_features, 1]``, in the precision that the weight had."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(dim=1, keepdim=True).div_(_MAX_CODE).to(weight.dtype)
        # A row of zeros, or of numbers so small that their scale is none.
        scale[scale == 0] = 1
        # By the scale as it is stored: what its own rounding did, the codes make good.
        codes = (weight.float() / scale.float()).round_().clamp_(-_MAX_CODE, _MAX_CODE)
        # Called as in nn.Linear: some architectures ask their layers for the weight's dtype (T5).
        self.weight = nn.Parameter(codes.to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = cast("nn.Parameter | None", linear.bias)  # torch declares it as always there

    def forward(self, states: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        weight = self.weight.to(states.dtype).mul_(self.scale.to(states.dtype))
        return F.linear(states, weight, self.bias)


@torch.no_grad()
def quantize_linear_layers(module: nn.Module) -> int:
    """Replace the linear layers inside a module, in place and one by one: no second copy of all weights.

    Returns:
        How many were replaced.
    """
    num_replaced = 0
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, Int8Linear(layer))
                num_replaced += 1
    return num_replaced
