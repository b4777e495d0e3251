"""A layer of BERT's line in few calls: one product for query, key and value, and no addition apart.

A small pass spends much of its time between its products: in modules that call modules, in dropout that drops
nothing, in a signature that transformers inspects at every call. Fused, a MiniLM pass of one short query
takes 0.85 of the time, and one of 450 tokens 0.99 (one thread, float32, AVX-512), to the same bits.

Laws: a fused layer computes what its plain one does, with whatever attention the model is set to; only layers
that are known line by line are fused, each after it was tried beside its plain self on random states; and a
pass can be left between the products, however long it is (interruption.py).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaLayer

from model.interruption import pause
from model.onednn import DTYPES, FAILURES, PackedWeight, is_close

# B sequences, L tokens (B = 1 and L = T in a packed row), D hidden size, F feed-forward size, H heads,
# d head size

PIECE_TOKENS = 512
"""Smaller products are slower: of 2,048 tokens pieces of so many take 1.01 of the time, of 128 1.2."""
_KNOWN_LAYERS = (BertLayer, RobertaLayer, XLMRobertaLayer)
"""One layer under three names (transformers 5.23): the residual behind the product, the norm behind that."""


class FusedLayer(nn.Module):
    """An encoder layer for inference on CPU."""

    is_causal = False

    def __init__(self, layer: Any) -> None:
        """Lay out the weights of a layer of ``_KNOWN_LAYERS``, whose own stay where they are."""
        super().__init__()
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self._config = attention.config
        self._num_heads: int = attention.num_attention_heads
        self._scaling: float = attention.scaling
        self.query_key_value = PackedWeight(
            torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]).detach()
        )
        self.attention_out = _packed(layer.attention.output.dense)
        self._attention_norm: nn.LayerNorm = layer.attention.output.LayerNorm
        self.feed_in = _packed(layer.intermediate.dense)
        self.feed_out = _packed(layer.output.dense)
        self._norm: nn.LayerNorm = layer.output.LayerNorm

    def forward(
        self,
        states_BLD: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: object = None,
        **options: Any,
    ) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]``, in the signature of the layer it stands for."""
        assert encoder_hidden_states is None, "only encoders are fused"
        assert past_key_values is None, "only encoders are fused"
        # [B, L, 3, H, d] to three views [B, H, L, d].
        query, key, value = (
            self.query_key_value.product(states_BLD)
            .unflatten(-1, (3, self._num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        pause()
        # Asked anew, as the plain layer does: packed rows are switched on after the layers are fused.
        attend: Callable[..., tuple[Tensor, object]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self._config._attn_implementation, sdpa_attention_forward
        )
        attended_BLHd, _ = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self._scaling, **options
        )
        # Behind attention every token is by itself: long passes go on in pieces, to be left in between.
        pieces = zip(
            attended_BLHd.flatten(2).flatten(0, 1).split(PIECE_TOKENS),
            states_BLD.flatten(0, 1).split(PIECE_TOKENS),
            strict=True,
        )
        return torch.cat([self._behind_attention(*piece) for piece in pieces]).view_as(states_BLD)

    def _behind_attention(self, attended_TD: Tensor, states_TD: Tensor) -> Tensor:
        pause()
        between_TD = _normed(self._attention_norm, self.attention_out.product_plus(attended_TD, states_TD))
        wide_TF = self.feed_in.product_gelu(between_TD)
        pause()
        return _normed(self._norm, self.feed_out.product_plus(wide_TF, between_TD))


def fused_or_none(layer: nn.Module) -> FusedLayer | None:
    """The fused layer, or ``None`` where it is not one that can be, or gave something else."""
    if type(layer) not in _KNOWN_LAYERS or not _is_fusable(layer):
        return None
    try:
        fused = FusedLayer(layer)
        return fused if _computes_the_same(fused, layer) else None
    except FAILURES:
        return None


def linear_layers(layer: nn.Module) -> list[nn.Linear]:
    """The linear layers in a layer, whose work a fused one takes over."""
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def _is_fusable(layer: Any) -> bool:
    """Whether the options that a configuration switches on or off are all as the fused layer has them."""
    linears = linear_layers(layer)
    norms = [module for module in layer.modules() if isinstance(module, nn.LayerNorm)]
    return (
        not layer.training
        and not layer.is_decoder
        and layer.chunk_size_feed_forward == 0
        and layer.attention.self.config._attn_implementation == "sdpa"
        and is_exact_gelu(layer.intermediate.intermediate_act_fn)
        # Exactly torch's own: a subclass may compute something of its own.
        and {type(module) for module in (*linears, *norms)} == {nn.Linear, nn.LayerNorm}
        and all(one.weight.device.type == "cpu" and one.weight.dtype in DTYPES for one in (*linears, *norms))
        and all(one.bias is not None for one in linears)  # pyright: ignore[reportUnnecessaryComparison] - torch declares it as always there
    )


def is_exact_gelu(activation: object) -> bool:
    """Whether the activation is the GELU of the error function, and not its approximation by tanh."""
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return isinstance(activation, GELUActivation) and activation.act is F.gelu


def _computes_the_same(fused: FusedLayer, layer: Any) -> bool:
    """Compare the whole, and each product by itself: a layer norm may hide what is wrong before it."""
    feed_in, feed_out, attention_out = (
        layer.intermediate.dense,
        layer.output.dense,
        layer.attention.output.dense,
    )
    attention = layer.attention.self
    random = torch.Generator().manual_seed(0)
    states_BLD, residual_BLD, wide_BLF = (
        torch.randn(2, 5, size, generator=random).to(feed_in.weight.dtype)
        for size in (feed_in.in_features, feed_in.in_features, feed_in.out_features)
    )
    parts = [part(states_BLD) for part in (attention.query, attention.key, attention.value)]
    return (
        is_close(fused.query_key_value.product(states_BLD), torch.cat(parts, dim=-1))
        and is_close(
            fused.attention_out.product_plus(states_BLD, residual_BLD),
            attention_out(states_BLD) + residual_BLD,
        )
        and is_close(fused.feed_in.product_gelu(states_BLD), F.gelu(feed_in(states_BLD)))
        and is_close(fused.feed_out.product_plus(wide_BLF, residual_BLD), feed_out(wide_BLF) + residual_BLD)
        and is_close(fused(states_BLD), layer(states_BLD))
    )


def _packed(layer: nn.Linear) -> PackedWeight:
    return PackedWeight(layer.weight, layer.bias)


def _normed(norm: nn.LayerNorm, states_BLD: Tensor) -> Tensor:
    return F.layer_norm(states_BLD, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
