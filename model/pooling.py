"""From hidden states of a packed row to one vector a sequence, as sentence-transformers pools.

Shapes: T tokens of the row, B sequences, D hidden size.
"""

from collections.abc import Sequence
from enum import StrEnum

import torch
from torch import Tensor


class Pooling(StrEnum):
    """Which hidden states of a sequence make its vector. Values are sentence-transformers' names."""

    CLS = "cls"
    """The first token's."""
    MEAN = "mean"
    MAX = "max"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"
    """The sum over the square root of the length."""
    WEIGHTED_MEAN = "weightedmean"
    """The mean weighted by position, first token 1 (SGPT, arXiv:2202.08904)."""
    LAST = "lasttoken"
    """The last token's: where a causal model has read everything."""


def pool(
    hidden_TD: Tensor, lengths: Sequence[int], num_prompt_tokens: Sequence[int], modes: Sequence[Pooling]
) -> Tensor:
    """Pool each sequence of a packed row.

    Args:
        hidden_TD: Hidden states of the row.
        lengths: Tokens of each sequence; they add up to T.
        num_prompt_tokens: Leading tokens of each sequence that take no part. A sequence that is nothing
            but prompt is pooled whole.
        modes: One or more; the vectors of several are laid end to end, in this order.

    Returns:
        ``[B, D * len(modes)]``, float32, not normalised.
    """
    sequences = hidden_TD.split(list(lengths))
    rows = [
        torch.cat([_pool_one(sequence, skip if skip < len(sequence) else 0, mode) for mode in modes])
        for sequence, skip in zip(sequences, num_prompt_tokens, strict=True)
    ]
    return torch.stack(rows)


def _pool_one(hidden_LD: Tensor, skip: int, mode: Pooling) -> Tensor:
    """``[D]``, float32: half precision is added up in single, or a long text's mean drifts."""
    kept_LD = hidden_LD[skip:]
    match mode:
        case Pooling.CLS:
            return kept_LD[0].float()
        case Pooling.LAST:
            return kept_LD[-1].float()
        case Pooling.MAX:
            return kept_LD.amax(dim=0).float()
        case Pooling.MEAN:
            return kept_LD.mean(dim=0, dtype=torch.float32)
        case Pooling.MEAN_SQRT_LEN:
            return kept_LD.sum(dim=0, dtype=torch.float32) / len(kept_LD) ** 0.5
        case Pooling.WEIGHTED_MEAN:
            # Tokens keep the weight of their place in the whole sequence, prompt or not.
            weights_L = torch.arange(
                skip + 1, len(hidden_LD) + 1, device=hidden_LD.device, dtype=torch.float32
            )
            return weights_L @ kept_LD.float() / weights_L.sum()
