"""From hidden states of a packed row to one vector a sequence, as sentence-transformers pools.

Shapes: T tokens of the row, B sequences, D hidden size.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate

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
    # A sequence that is nothing but prompt keeps it.
    skips = [skip if skip < length else 0 for skip, length in zip(num_prompt_tokens, lengths, strict=True)]
    spans = _Spans(hidden_TD, lengths, skips)
    return torch.cat([_pool_by(mode, spans) for mode in modes], dim=1)


class _Spans:
    """The sequences of a row, and which of their tokens take part."""

    def __init__(self, hidden_TD: Tensor, lengths: Sequence[int], skips: Sequence[int]) -> None:
        stops = list(accumulate(lengths))
        self.hidden_TD = hidden_TD
        self.skips = skips
        self.starts = [stop - length for stop, length in zip(stops, lengths, strict=True)]
        self.firsts = [start + skip for start, skip in zip(self.starts, skips, strict=True)]
        self.stops = stops

    def rows(self, indices: Sequence[int]) -> Tensor:
        """``[B, D]``, float32: one token of each sequence."""
        return self.hidden_TD[torch.tensor(indices, device=self.hidden_TD.device)].float()

    def sums(self) -> Tensor:
        """``[B, D]``, float32: half precision is added up in single, or a long text's mean drifts."""
        owners_T = torch.repeat_interleave(
            torch.arange(len(self.starts)),
            torch.tensor([stop - start for start, stop in zip(self.starts, self.stops, strict=True)]),
        )
        kept_TD = self.hidden_TD.float()
        if any(self.skips):
            kept_TD = kept_TD.clone()
            for start, first in zip(self.starts, self.firsts, strict=True):
                kept_TD[start:first] = 0
        sums_BD = torch.zeros((len(self.starts), kept_TD.shape[1]), device=kept_TD.device)
        return sums_BD.index_add_(0, owners_T.to(kept_TD.device), kept_TD)

    def counts(self) -> Tensor:
        """``[B, 1]``: tokens that take part."""
        counts = [stop - first for first, stop in zip(self.firsts, self.stops, strict=True)]
        return torch.tensor(counts, device=self.hidden_TD.device, dtype=torch.float32)[:, None]


def _pool_by(mode: Pooling, spans: _Spans) -> Tensor:
    """``[B, D]``, float32."""
    match mode:
        case Pooling.CLS:
            return spans.rows(spans.firsts)
        case Pooling.LAST:
            return spans.rows([stop - 1 for stop in spans.stops])
        case Pooling.MEAN:
            return spans.sums() / spans.counts()
        case Pooling.MEAN_SQRT_LEN:
            return spans.sums() / spans.counts().sqrt()
        case Pooling.MAX:
            ranges = zip(spans.firsts, spans.stops, strict=True)
            return torch.stack([spans.hidden_TD[first:stop].amax(dim=0).float() for first, stop in ranges])
        case Pooling.WEIGHTED_MEAN:
            return torch.stack([_weighted_mean(spans, index) for index in range(len(spans.starts))])


def _weighted_mean(spans: _Spans, index: int) -> Tensor:
    """``[D]``. Tokens keep the weight of their place in the whole sequence, prompt or not."""
    kept_LD = spans.hidden_TD[spans.firsts[index] : spans.stops[index]].float()
    first_weight = spans.skips[index] + 1
    weights_L = torch.arange(
        first_weight, first_weight + len(kept_LD), device=kept_LD.device, dtype=torch.float32
    )
    return weights_L @ kept_LD / weights_L.sum()
