"""Turns the features of one pass into vectors: one packed forward, pooling, head, single precision.

Where packing does not work for an architecture (``Backbone`` tries at load), the same pass runs in
length-bucketed padded batches. Either way what follows sees one row of tokens, without padding.

Shapes: T tokens of the pass, B sequences, L tokens of the longest of a bucket, D embedding dimension.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.blocks import BlockWatch
from model.packing import PACKED_ATTENTION, PackingUnsupportedError, packed, position_ids
from model.pooling import Pooling, pool
from model.types import Features, ModelInfo

MAX_PADDED_SHARE = 0.15
"""A padded bucket ends where more of it than this would be padding."""

# How far a sequence among others may be from itself alone (see ``disagreement``). Rounding in another order
# gives 1e-6 in float32 and some 1e-2 in half precision; a sequence that sees its neighbours, 0.3 and more.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
_PROBE_LENGTHS = (7, 150, 33, 33, 36)
"""Longer than common attention windows; two of a length, which share one attention call; and two that
would share a padded bucket."""


class Backbone:
    """A transformers model that gives one hidden state a token, packed or padded.

    Its law: a sequence among others gives what it gives alone, or the way of computing that breaks it is
    not used. Random sequences are tried at load, because some architectures ignore the attention interface
    (MPNet, DeBERTa) and some leak through their own padding (MobileBERT, FNet), without a word.
    """

    def __init__(self, transformer: Any, *, pad_id: int) -> None:
        self._transformer = transformer
        self._pad_id = pad_id
        self._own_attention: str | None = getattr(transformer.config, "_attn_implementation", None)
        self._padding_idx = position_padding_idx(transformer)
        accepted = inspect.signature(transformer.forward).parameters
        # Decoders would otherwise build a cache of keys and values that nobody reads.
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self._max_padded_share = MAX_PADDED_SHARE
        self.device = next(transformer.parameters()).device
        self.block_watch = BlockWatch(transformer, self.device)
        self.is_packed = False
        self.packing_note = "not tried"

    def hidden_states(self, features: Sequence[Features]) -> Tensor:
        """Hidden states of all inputs laid end to end, ``[T, hidden]``."""
        sequences = [one.token_ids for one in features]
        if not self.is_packed:
            return self._padded_states(sequences)
        with packed([len(sequence) for sequence in sequences]):
            return self._packed_states(sequences)

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """Tokens that a pass of these inputs computes beside theirs."""
        if self.is_packed:
            return 0
        lengths = [one.num_tokens for one in features]
        buckets = padded_buckets(lengths, max_padded_share=self._max_padded_share)
        num_computed = sum(len(bucket) * max(lengths[index] for index in bucket) for bucket in buckets)
        return num_computed - sum(lengths)

    def choose_passes(
        self, *, max_tokens: int, special_ids: Sequence[int], vocab_size: int, may_pack: bool
    ) -> None:
        """Try packed rows on random sequences, and padded batches where those fail; the note tells."""
        sequences = self._probe_sequences(max_tokens, special_ids, vocab_size)
        alone_TD = torch.cat([self._padded_states([sequence]) for sequence in sequences])
        tolerance = TOLERANCE[alone_TD.dtype]
        refusal = self._try_packing(sequences, alone_TD, tolerance) if may_pack else "padding was asked for"
        if refusal is None:
            return
        self._transformer.set_attn_implementation(self._own_attention)
        self.is_packed, self.packing_note = False, refusal
        if not disagreement(self._padded_states(sequences), alone_TD) <= tolerance:
            self._max_padded_share = 0
            self.packing_note += "; padding changes its results, so only texts of equal length share a batch"

    def _probe_sequences(
        self, max_tokens: int, special_ids: Sequence[int], vocab_size: int
    ) -> list[npt.NDArray[np.int32]]:
        random = np.random.default_rng(0)
        ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(special_ids, dtype=np.int32))
        lengths = [min(length, max_tokens) for length in _PROBE_LENGTHS]
        sequences = [random.choice(ordinary, size=length).astype(np.int32) for length in lengths]
        # A padding token may stand in a text, and RoBERTa's line does not count it as a position.
        sequences[1][len(sequences[1]) // 2] = self._pad_id
        return sequences

    def _try_packing(
        self, sequences: Sequence[npt.NDArray[np.int32]], alone_TD: Tensor, tolerance: float
    ) -> str | None:
        """Switch to packed rows, or return why not."""
        try:
            self._transformer.set_attn_implementation(PACKED_ATTENTION)
            with packed([len(sequence) for sequence in sequences]) as segments:
                together_TD = self._packed_states(sequences)
        except PackingUnsupportedError as error:
            return str(error)
        except Exception as error:
            # Whatever an architecture makes of the row or of the name, the answer is the same: pad.
            return f"the architecture does not take a packed row ({type(error).__name__})"
        if segments.num_attention_calls == 0:
            return "the architecture does not call the registered attention function"
        difference = disagreement(together_TD, alone_TD)
        if not difference <= tolerance:
            return f"packed differs from single by {difference:.1e} of the spread, more than {tolerance:.0e}"
        self.is_packed, self.packing_note = True, f"packed equals single to {difference:.0e} of the spread"
        return None

    @torch.inference_mode()
    def _packed_states(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        row_T = np.concatenate(sequences).astype(np.int64)
        positions_T = position_ids(sequences, padding_idx=self._padding_idx)
        output = self._transformer(
            input_ids=torch.from_numpy(row_T).unsqueeze(0).to(self.device),
            position_ids=torch.from_numpy(positions_T).unsqueeze(0).to(self.device),
            **self._options,
        )
        return output.last_hidden_state[0]

    @torch.inference_mode()
    def _padded_states(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        states: list[Tensor | None] = [None] * len(sequences)
        lengths = [len(sequence) for sequence in sequences]
        for bucket in padded_buckets(lengths, max_padded_share=self._max_padded_share):
            ids_BL = torch.full((len(bucket), max(lengths[index] for index in bucket)), self._pad_id)
            mask_BL = torch.zeros_like(ids_BL)
            for row, index in enumerate(bucket):
                ids_BL[row, : lengths[index]] = torch.from_numpy(sequences[index])
                mask_BL[row, : lengths[index]] = 1
            output = self._transformer(
                input_ids=ids_BL.to(self.device), attention_mask=mask_BL.to(self.device), **self._options
            )
            for row, index in enumerate(bucket):
                states[index] = output.last_hidden_state[row, : lengths[index]]
        return torch.cat([state for state in states if state is not None])


def disagreement(actual_TD: Tensor, expected_TD: Tensor) -> float:
    """How far apart two computations of the same hidden states are.

    For each dimension the root mean square of the difference, in units of that dimension's spread over the
    tokens; of these the median. Neither one dimension with huge values, as many models have, nor the common
    offset of all tokens can hide that tokens see what they should not.
    """
    actual_TD, expected_TD = actual_TD.float(), expected_TD.float()
    rms_D = (actual_TD - expected_TD).square().mean(dim=0).sqrt()
    spread_D = expected_TD.std(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return float((rms_D / spread_D).median())


def padded_buckets(
    lengths: Sequence[int], *, max_padded_share: float = MAX_PADDED_SHARE
) -> Iterator[list[int]]:
    """Indices of sequences that go together in padded batches, shortest first, little padding in each."""
    bucket: list[int] = []
    num_real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        num_padded = lengths[index] * (len(bucket) + 1)
        if bucket and num_padded - (num_real + lengths[index]) > max_padded_share * num_padded:
            yield bucket
            bucket, num_real = [], 0
        bucket.append(index)
        num_real += lengths[index]
    if bucket:
        yield bucket


def position_padding_idx(transformer: Any) -> int | None:
    """The padding id from which RoBERTa's line counts its positions; ``None`` where they count from 0."""
    embeddings = getattr(transformer, "embeddings", None)
    if not hasattr(embeddings, "create_position_ids_from_input_ids"):
        return None
    return getattr(embeddings, "padding_idx", None)


class HiddenStates(Protocol):
    """What gives one hidden state a token: ``Backbone`` for texts, ``TwoTowerBackbone`` for images, too."""

    def hidden_states(self, features: Sequence[Features]) -> Tensor:
        """Hidden states of all inputs laid end to end, ``[T, hidden]``."""
        ...

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """Tokens that are computed for it beside those of the inputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """All layers of one model, from token ids to vectors. Holds the weights."""

    backbone: HiddenStates
    token_head: nn.Module
    """Works on every token's hidden state."""
    pooling: tuple[Pooling, ...]
    head: nn.Module
    """Works on the pooled vectors, and gives single precision where it does anything."""

    @torch.inference_mode()
    def rows(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        """Run one pass: ``[B, D]`` in the order of ``features``."""
        # Neighbours of equal length share an attention call.
        order = sorted(range(len(features)), key=lambda index: features[index].num_tokens)
        ordered = [features[index] for index in order]
        hidden_TD = self.backbone.hidden_states(ordered)
        pooled_BD = pool(
            self.token_head(hidden_TD),
            [one.num_tokens for one in ordered],
            [one.num_prompt_tokens for one in ordered],
            self.pooling,
        )
        rows_BD = self.head(pooled_BD).cpu().numpy()
        in_order_BD = np.empty_like(rows_BD, dtype=np.float32)
        in_order_BD[order] = rows_BD
        return in_order_BD


class TransformerEncoder:
    """One loaded model: its layers, and what is known of it."""

    def __init__(self, layers: Layers, info: ModelInfo) -> None:
        self._layers = layers
        self.info = info

    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        """Run one pass.

        Returns:
            ``[B, D]`` in the order of ``features``; of unit length where the checkpoint normalises.
        """
        return self._layers.rows(features)

    def num_padding_tokens(self, features: Sequence[Features]) -> int:
        """Tokens that a pass of these inputs computes beside theirs; 0 where passes are packed."""
        return self._layers.backbone.num_padding_tokens(features)
