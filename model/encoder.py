"""Turns the features of one pass into vectors: one packed forward, pooling, head, single precision.

Where packing does not work for an architecture (``probe_packing`` decides at load), the same pass runs in
length-bucketed padded batches. Either way what follows sees one row of tokens, without padding.

Shapes: T tokens of the pass, B sequences, L tokens of the longest of a bucket, D embedding dimension.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.families.family import Recipe
from model.packing import PACKED_ATTENTION, PackingUnsupportedError, packed, position_ids
from model.pooling import pool
from model.types import Features, ModelInfo

MAX_PADDED_SHARE = 0.15
"""A padded bucket ends where more of it than this would be padding."""

# How far a packed hidden state may be from the same sequence alone, relative to the largest: rounding of
# another order of additions. Measured on random checkpoints of 12 architectures: up to 4e-6 in float32.
_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_PROBE_LENGTHS = (7, 150, 33, 33)
"""Longer than common attention windows, and two of a length, which share one attention call."""


class Backbone:
    """A transformers model that gives one hidden state a token, packed or padded."""

    def __init__(self, transformer: Any, *, pad_id: int) -> None:
        self._transformer = transformer
        self._pad_id = pad_id
        self._own_attention: str | None = getattr(transformer.config, "_attn_implementation", None)
        self._first_position = _first_position(transformer)
        accepted = inspect.signature(transformer.forward).parameters
        # Decoders would otherwise build a cache of keys and values that nobody reads.
        self._options = {"use_cache": False} if "use_cache" in accepted else {}
        self.device = next(transformer.parameters()).device
        self.is_packed = False
        self.packing_note = "not probed"

    def hidden_states(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        """Hidden states of all sequences laid end to end, ``[T, hidden]``."""
        return self._packed_states(sequences) if self.is_packed else self._padded_states(sequences)

    def use_packing(self, *, max_tokens: int, special_ids: Sequence[int], vocab_size: int) -> None:
        """Switch to packed rows if they give what each sequence gives alone, and say why if they do not.

        The law of the gate: the packed result is compared with the model's own attention on random
        sequences, and the registered function must have been called. Some architectures ignore the
        interface (MPNet, DeBERTa), and would let sequences of a row see each other without a word.
        """
        random = np.random.default_rng(0)
        ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(special_ids, dtype=np.int32))
        sequences = [
            random.choice(ordinary, size=min(length, max_tokens)).astype(np.int32)
            for length in _PROBE_LENGTHS
        ]
        alone_TD = torch.cat([self._padded_states([sequence]) for sequence in sequences])
        try:
            self._transformer.set_attn_implementation(PACKED_ATTENTION)
            with packed([len(sequence) for sequence in sequences]) as segments:
                together_TD = self._forward_row(sequences)
        except Exception as error:
            # Whatever an architecture makes of the row or of the name, the answer is the same: pad.
            self._refuse_packing(_refusal(error))
            return
        difference = float(
            (together_TD.float() - alone_TD.float()).abs().max() / alone_TD.float().abs().max()
        )
        tolerance = _PROBE_TOLERANCE[alone_TD.dtype]
        if segments.num_attention_calls == 0:
            self._refuse_packing("the architecture does not call the registered attention function")
        elif not difference <= tolerance:
            self._refuse_packing(f"packed differs from single by {difference:.1e}, more than {tolerance:.0e}")
        else:
            self.is_packed, self.packing_note = True, f"packed equals single to {difference:.0e}"

    def _refuse_packing(self, why: str) -> None:
        self._transformer.set_attn_implementation(self._own_attention)
        self.is_packed, self.packing_note = False, why

    def _packed_states(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        with packed([len(sequence) for sequence in sequences]):
            return self._forward_row(sequences)

    @torch.inference_mode()
    def _forward_row(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        lengths = [len(sequence) for sequence in sequences]
        row_1T = torch.from_numpy(np.concatenate(sequences).astype(np.int64)).unsqueeze(0).to(self.device)
        positions_1T = position_ids(lengths, first=self._first_position, device=self.device)
        output = self._transformer(input_ids=row_1T, position_ids=positions_1T, **self._options)
        return output.last_hidden_state[0]

    @torch.inference_mode()
    def _padded_states(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        states: list[Tensor | None] = [None] * len(sequences)
        for bucket in padded_buckets([len(sequence) for sequence in sequences]):
            longest = max(len(sequences[index]) for index in bucket)
            ids_BL = torch.full((len(bucket), longest), self._pad_id, dtype=torch.int64)
            mask_BL = torch.zeros_like(ids_BL)
            for row, index in enumerate(bucket):
                length = len(sequences[index])
                ids_BL[row, :length] = torch.from_numpy(sequences[index])
                mask_BL[row, :length] = 1
            output = self._transformer(
                input_ids=ids_BL.to(self.device), attention_mask=mask_BL.to(self.device), **self._options
            )
            for row, index in enumerate(bucket):
                states[index] = output.last_hidden_state[row, : len(sequences[index])]
        return torch.cat([state for state in states if state is not None])


def padded_buckets(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences that go together in padded batches, shortest first, little padding in each."""
    bucket: list[int] = []
    num_real = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        num_padded = lengths[index] * (len(bucket) + 1)
        if bucket and num_padded - (num_real + lengths[index]) > MAX_PADDED_SHARE * num_padded:
            yield bucket
            bucket, num_real = [], 0
        bucket.append(index)
        num_real += lengths[index]
    if bucket:
        yield bucket


def _first_position(transformer: Any) -> int:
    """Position id of a sequence's first token. RoBERTa's line counts from ``padding_idx + 1``."""
    embeddings = getattr(transformer, "embeddings", None)
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    padding_idx = getattr(embeddings, "padding_idx", None)
    return padding_idx + 1 if counts_from_padding and padding_idx is not None else 0


def _refusal(error: Exception) -> str:
    if isinstance(error, PackingUnsupportedError):
        return str(error)
    return f"the architecture does not take a packed row ({type(error).__name__})"


class TextEncoder:
    """One loaded model: features in, vectors out. Owns the weights."""

    def __init__(
        self, *, backbone: Backbone, token_head: nn.Module, head: nn.Module, recipe: Recipe, info: ModelInfo
    ) -> None:
        self._backbone = backbone
        self._token_head = token_head
        self._head = head
        self._recipe = recipe
        self.info = info

    @torch.inference_mode()
    def encode(self, features: Sequence[Features]) -> npt.NDArray[np.float32]:
        """Run one pass.

        Returns:
            ``[B, D]`` in the order of ``features``; of unit length where the checkpoint normalises.
        """
        # Neighbours of equal length share an attention call.
        order = sorted(range(len(features)), key=lambda index: features[index].num_tokens)
        ordered = [features[index] for index in order]
        hidden_TD = self._backbone.hidden_states([one.token_ids for one in ordered])
        pooled_BD = pool(
            self._token_head(hidden_TD),
            [one.num_tokens for one in ordered],
            [one.num_prompt_tokens for one in ordered],
            self._recipe.pooling,
        )
        rows_BD = self._head(pooled_BD).cpu().numpy()
        in_order_BD = np.empty_like(rows_BD, dtype=np.float32)
        in_order_BD[order] = rows_BD
        return in_order_BD
