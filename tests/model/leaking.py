"""Attention in which the sequences of a row see each other: what the gates must not let pass."""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def whole_row_attention(
    query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor, _segments: Any, rule: Any
) -> Tensor:
    """What would happen if nothing kept the sequences of a row apart."""
    states = [states.transpose(0, 1).unsqueeze(0) for states in (query_THd, key_TGd, value_TGd)]
    attended = scaled_dot_product_attention(
        *states, scale=rule.scaling, is_causal=rule.is_causal, enable_gqa=True
    )
    return attended[0].transpose(0, 1)
