"""Packed passes: all sequences of a pass in one row, each attending to itself alone, no padding anywhere.

A Hugging Face encoder computes everything but attention token by token, so a row ``[1, T]`` of several
sequences laid end to end is correct as soon as two things are: the position ids start again with each
sequence, and attention stays inside it. The first is an argument of the model. The second is one function,
registered with transformers' ``AttentionInterface``, which learns where the sequences lie from a context
variable, because some architectures do not hand extra keyword arguments down to their layers.

Law of this file: whatever the function does not understand is an error, never ignored. The probe at load
(``Backbone.use_packing``) turns such an error, or a wrong result, into length-bucketed padding.

Shapes: T tokens of the row, B sequences, L tokens of one sequence, H query heads, G key and value heads,
d head size.
"""

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED_ATTENTION = "laneway_packed"
"""Name of the registered attention function. transformers treats names with "flash", "sdpa" or a slash in a
special way, and builds no mask at all for a name that it does not know: what a packed row needs."""

MAX_VARLEN_HEAD_DIM = 256
"""FlashAttention-2 kernels end there (torch.nn.attention.varlen)."""


class PackingUnsupportedError(Exception):
    """The architecture asks of attention what a packed pass does not offer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring sequences of equal length: one attention call serves all of them."""

    start: int
    """Index of the first token in the row."""
    count: int
    length: int

    @property
    def stop(self) -> int:
        """Index after the last token."""
        return self.start + self.count * self.length


class Segments:
    """Where the sequences of one row lie. Worked out once a pass, asked by every layer."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.longest = max(lengths)
        self.offsets = (0, *accumulate(lengths))
        """``B + 1`` token indices: where each sequence starts, and the end of the row."""
        self.runs = _runs(lengths)
        self.num_attention_calls = 0
        """Counted so that the probe knows whether the model called the function at all."""
        self._offsets_on: dict[torch.device, Tensor] = {}
        self._window_masks: dict[tuple[int, int, bool], Tensor] = {}

    def offsets_on(self, device: torch.device) -> Tensor:
        """The offsets as the kernels want them, int32."""
        if device not in self._offsets_on:
            self._offsets_on[device] = torch.tensor(self.offsets, dtype=torch.int32).to(device)
        return self._offsets_on[device]

    def window_mask(self, length: int, window: int, is_causal: bool, device: torch.device) -> Tensor:
        """``[L, L]``, true where a query (row) sees a key (column): less than ``window`` away."""
        key = (length, window, is_causal)
        if key not in self._window_masks:
            mask_LL = torch.ones((length, length), dtype=torch.bool, device=device)
            self._window_masks[key] = mask_LL.tril(0 if is_causal else window - 1).triu(1 - window)
        return self._window_masks[key]


def _runs(lengths: Sequence[int]) -> tuple[Run, ...]:
    runs: list[Run] = []
    start = 0
    for length, group in groupby(lengths):
        run = Run(start, len(list(group)), length)
        runs.append(run)
        start = run.stop
    return tuple(runs)


_segments: ContextVar[Segments] = ContextVar("segments")


@contextmanager
def packed(lengths: Sequence[int]) -> Generator[Segments]:
    """Within the block, the registered attention function works on a row of sequences of these lengths."""
    segments = Segments(lengths)
    token = _segments.set(segments)
    try:
        yield segments
    finally:
        _segments.reset(token)


def position_ids(
    sequences: Sequence[npt.NDArray[np.int32]], *, padding_idx: int | None
) -> npt.NDArray[np.int64]:
    """Positions of the tokens of a row, which start again with each sequence.

    Args:
        sequences: Token ids of each sequence.
        padding_idx: In RoBERTa's line, the padding token's id: positions count the other tokens from
            ``padding_idx + 1``, and a padding token that stands in a text has the position
            ``padding_idx``. ``None`` elsewhere: positions count from 0.

    Returns:
        ``[T]``.
    """
    if padding_idx is None:
        return np.concatenate([np.arange(len(sequence)) for sequence in sequences])
    is_text = [sequence != padding_idx for sequence in sequences]
    return np.concatenate([np.cumsum(is_real) * is_real + padding_idx for is_real in is_text])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who sees whom inside a sequence, and how scores are scaled."""

    scaling: float | None
    is_causal: bool
    sliding_window: int | None
    """FlashAttention's: a token sees ``sliding_window - 1`` neighbours on each side, or to its left where
    attention is causal."""


def packed_attention(
    module: nn.Module,
    query_1HTd: Tensor,
    key_1GTd: Tensor,
    value_1GTd: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **extras: object,
) -> tuple[Tensor, None]:
    """Attention of each sequence of the row to itself, in the signature of transformers' interface.

    Key and value heads come unrepeated.

    Returns:
        ``[1, T, H, d]`` and no attention weights.

    Raises:
        PackingUnsupportedError: The model gave a mask or a term (soft cap, sinks, position bias) that
            would have to be honoured.
    """
    segments = _segments.get()
    segments.num_attention_calls += 1
    if attention_mask is not None:
        raise PackingUnsupportedError("the model builds an attention mask of its own")
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if extras.get(name) is not None:
            raise PackingUnsupportedError(f"the model's attention uses {name}")
    rule = Rule(
        scaling=scaling,
        is_causal=is_causal if is_causal is not None else bool(getattr(module, "is_causal", True)),
        sliding_window=sliding_window,
    )
    attend = _varlen_attention if _varlen_fits(query_1HTd) else _segment_attention
    query_THd, key_TGd, value_TGd = (
        states[0].transpose(0, 1) for states in (query_1HTd, key_1GTd, value_1GTd)
    )
    return attend(query_THd, key_TGd, value_TGd, segments, rule).unsqueeze(0), None


def _segment_attention(
    query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor, segments: Segments, rule: Rule
) -> Tensor:
    """``[T, H, d]`` by one SDPA call a run.

    On CPU this beats one masked call over the row by 2 to 4 times (T = 2137).
    """
    out_THd = torch.empty_like(query_THd, memory_format=torch.contiguous_format)
    enable_gqa = key_TGd.shape[1] != query_THd.shape[1]
    for run in segments.runs:
        mask_LL = None
        if rule.sliding_window is not None and rule.sliding_window < run.length:
            mask_LL = segments.window_mask(run.length, rule.sliding_window, rule.is_causal, query_THd.device)
        attended = F.scaled_dot_product_attention(
            *(_run_heads(states, run) for states in (query_THd, key_TGd, value_TGd)),
            attn_mask=mask_LL,
            is_causal=rule.is_causal and mask_LL is None,
            scale=rule.scaling,
            enable_gqa=enable_gqa,
        )
        _run_heads(out_THd, run).copy_(attended)
    return out_THd


def _run_heads(states_THd: Tensor, run: Run) -> Tensor:
    """The run's part of the row as a batch for SDPA: a view ``[count, heads, L, d]``."""
    return states_THd[run.start : run.stop].unflatten(0, (run.count, run.length)).transpose(1, 2)


def _varlen_fits(query_1HTd: Tensor) -> bool:
    """Whether FlashAttention's variable-length kernel takes these states."""
    head_dim = query_1HTd.shape[-1]
    return (
        query_1HTd.device.type == "cuda"
        and query_1HTd.dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= MAX_VARLEN_HEAD_DIM
        and torch.cuda.get_device_capability(query_1HTd.device) >= (8, 0)
    )


@cache
def _varlen_parameters() -> frozenset[str]:
    """What this torch's ``varlen_attn`` accepts; it gained ``enable_gqa`` between 2.11 and 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _varlen_attention(
    query_THd: Tensor, key_TGd: Tensor, value_TGd: Tensor, segments: Segments, rule: Rule
) -> Tensor:
    """``[T, H, d]`` by one kernel for the whole row (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if rule.sliding_window is None else rule.sliding_window - 1
    options: dict[str, Any] = {"scale": rule.scaling, "window_size": (reach, 0 if rule.is_causal else reach)}
    group_size = query_THd.shape[1] // key_TGd.shape[1]
    if group_size > 1:
        if "enable_gqa" in _varlen_parameters():
            options["enable_gqa"] = True
        else:
            key_TGd, value_TGd = (s.repeat_interleave(group_size, dim=1) for s in (key_TGd, value_TGd))
    if "num_splits" in _varlen_parameters():
        # One split keeps a sequence's result independent of its neighbours in the row.
        options["num_splits"] = 1
    offsets = segments.offsets_on(query_THd.device)
    longest = segments.longest
    out_THd = varlen_attn(query_THd, key_TGd, value_TGd, offsets, offsets, longest, longest, **options)
    assert isinstance(out_THd, Tensor)
    return out_THd


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
