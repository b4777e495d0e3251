"""Packed passes: all sequences of a pass in one row, each attending to itself alone, no padding anywhere.

A Hugging Face encoder computes everything but attention token by token, so a row ``[1, T]`` of several
sequences laid end to end is correct as soon as two things are: the position ids start again with each
sequence, and attention stays inside it. The first is an argument of the model. The second is one function,
registered with transformers' ``AttentionInterface``, which learns where the sequences lie from a context
variable, because some architectures do not hand extra keyword arguments down to their layers.

Law of this file: whatever the function does not understand is an error, never ignored. The probe at load
(``probe_packing``) turns such an error, or a wrong result, into length-bucketed padding.

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


@dataclass(slots=True)
class Segments:
    """Where the sequences of the row lie."""

    lengths: tuple[int, ...]
    num_attention_calls: int = 0
    """Counted so that the probe knows whether the model called the function at all."""

    def runs(self) -> tuple[Run, ...]:
        """The row as runs of equal length, in order."""
        runs: list[Run] = []
        start = 0
        for length, group in groupby(self.lengths):
            run = Run(start, len(list(group)), length)
            runs.append(run)
            start = run.stop
        return tuple(runs)

    def offsets(self) -> tuple[int, ...]:
        """``B + 1`` token indices: where each sequence starts, and the end of the row."""
        return (0, *accumulate(self.lengths))


_segments: ContextVar[Segments] = ContextVar("segments")


@contextmanager
def packed(lengths: Sequence[int]) -> Generator[Segments]:
    """Within the block, the registered attention function works on a row of sequences of these lengths."""
    segments = Segments(tuple(lengths))
    token = _segments.set(segments)
    try:
        yield segments
    finally:
        _segments.reset(token)


def position_ids(lengths: Sequence[int], *, first: int, device: torch.device) -> Tensor:
    """Positions that start again with each sequence.

    Args:
        lengths: Tokens of each sequence.
        first: Position of a sequence's first token: 0, or ``padding_idx + 1`` in RoBERTa's line.
        device: Where the result lives.

    Returns:
        ``[1, T]``, int64.
    """
    return torch.cat([torch.arange(first, first + length) for length in lengths]).unsqueeze(0).to(device)


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

    Key and value heads come unrepeated. ``sliding_window`` is FlashAttention's: a token sees
    ``sliding_window - 1`` neighbours on each side, or to its left where attention is causal.

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
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    if _varlen_fits(query_1HTd):
        return _varlen_attention(
            query_1HTd, key_1GTd, value_1GTd, segments, scaling, causal, sliding_window
        ), None
    return _segment_attention(
        query_1HTd, key_1GTd, value_1GTd, segments, scaling, causal, sliding_window
    ), None


def _segment_attention(
    query_1HTd: Tensor,
    key_1GTd: Tensor,
    value_1GTd: Tensor,
    segments: Segments,
    scaling: float | None,
    causal: bool,
    sliding_window: int | None,
) -> Tensor:
    """One SDPA call a run. On CPU this beats one masked call over the row by 2 to 4 times (T = 2137)."""
    query_THd, key_TGd, value_TGd = (
        states[0].transpose(0, 1) for states in (query_1HTd, key_1GTd, value_1GTd)
    )
    out_THd = torch.empty_like(query_THd, memory_format=torch.contiguous_format)
    enable_gqa = key_TGd.shape[1] != query_THd.shape[1]
    for run in segments.runs():
        window = sliding_window if sliding_window is not None and sliding_window <= run.length - 1 else None
        mask_LL = None if window is None else _window_mask(run.length, window, causal, query_THd.device)
        attended = F.scaled_dot_product_attention(
            *(_run_heads(states, run) for states in (query_THd, key_TGd, value_TGd)),
            attn_mask=mask_LL,
            is_causal=causal and mask_LL is None,
            scale=scaling,
            enable_gqa=enable_gqa,
        )
        _run_heads(out_THd, run).copy_(attended)
    return out_THd.unsqueeze(0)


def _run_heads(states_THd: Tensor, run: Run) -> Tensor:
    """The run's part of the row as a batch for SDPA: a view ``[count, heads, L, d]``."""
    return states_THd[run.start : run.stop].unflatten(0, (run.count, run.length)).transpose(1, 2)


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """``[L, L]``, true where a query (row) sees a key (column)."""
    distance_LL = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    near_LL = distance_LL.abs() < window
    return near_LL & (distance_LL >= 0) if causal else near_LL


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
    query_1HTd: Tensor,
    key_1GTd: Tensor,
    value_1GTd: Tensor,
    segments: Segments,
    scaling: float | None,
    causal: bool,
    sliding_window: int | None,
) -> Tensor:
    """One kernel for the whole row (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    query_THd, key_TGd, value_TGd = (
        states[0].transpose(0, 1) for states in (query_1HTd, key_1GTd, value_1GTd)
    )
    reach = -1 if sliding_window is None else sliding_window - 1
    options: dict[str, Any] = {"scale": scaling, "window_size": (reach, 0 if causal else reach)}
    group_size = query_THd.shape[1] // key_TGd.shape[1]
    if group_size > 1:
        if "enable_gqa" in _varlen_parameters():
            options["enable_gqa"] = True
        else:
            key_TGd, value_TGd = (s.repeat_interleave(group_size, dim=1) for s in (key_TGd, value_TGd))
    if "num_splits" in _varlen_parameters():
        # One split keeps a sequence's result independent of its neighbours in the row.
        options["num_splits"] = 1
    offsets = torch.tensor(segments.offsets(), dtype=torch.int32).to(query_THd.device, non_blocking=True)
    longest = max(segments.lengths)
    out_THd = varlen_attn(query_THd, key_TGd, value_TGd, offsets, offsets, longest, longest, **options)
    assert isinstance(out_THd, Tensor)
    return out_THd.unsqueeze(0)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
