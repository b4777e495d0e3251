"""Products with a weight that oneDNN has laid out for its kernels, and what it computes in the same call.

The operators are the ones torch's own compiler freezes models with. They are private, so whoever uses this
compares with what torch computes in public (``is_close``), and expects any of ``FAILURES``.
"""

import torch
from torch import Tensor

# Sizes of passes vary; the layout is chosen for one in the middle.
_TYPICAL_TOKENS = 256
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Without AVX-512 oneDNN's error function adds a third to the product before it, and torch's own a tenth
# (512 tokens by 384 to 1,536, one thread, AVX2: 10.7 ms in one call, 9.1 in two, 8.2 the product alone).
_ONEDNN_GELU_IS_FAST = torch.backends.cpu.get_cpu_capability() == "AVX512"

DTYPES = frozenset(_TOLERANCE)
FAILURES = (AttributeError, RuntimeError, NotImplementedError)
"""What a torch raises that has no such operators, or has them with other arguments."""


class PackedWeight:
    """A weight and its bias: the weight is a copy, the bias the layer's own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().clone(), _TYPICAL_TOKENS)
        self._bias = bias

    def product(self, states: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")

    def product_gelu(self, states: Tensor) -> Tensor:
        """The exact GELU of the product."""
        if not _ONEDNN_GELU_IS_FAST:
            return torch.ops.aten.gelu_(self.product(states))
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "gelu", [], "none")

    def product_plus(self, states: Tensor, residual: Tensor) -> Tensor:
        """The product and ``residual`` (``[..., out_features]``) together."""
        return torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._weight, self._bias, "add")


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two computations differ in nothing but the order of rounding. NaN is close to nothing."""
    largest_difference = (actual.float() - expected.float()).abs().max()
    return bool(largest_difference <= _TOLERANCE[expected.dtype] * expected.float().abs().max())
