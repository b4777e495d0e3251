"""Builds tiny random checkpoints in sentence-transformers' layout: every architecture, no download.

Weights are drawn with the variance of a real initialisation scaled up, because transformers' default of
0.02 makes all inputs nearly alike, and a wrong vector would pass for a right one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    MobileBertConfig,
    MobileBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "A search query stays fast while a million documents are being indexed.",
    "Packed passes hold no padding, and every sequence attends to itself alone.",
    "日本語の文章と、emoji 🙂 and Ünïcödé words appear as well.",
    "def encode(features): return pool(hidden, lengths)",
]
VOCAB_SIZE = 400


@dataclass(frozen=True)
class Architecture:
    """How to make one tiny model with its tokenizer."""

    model: Callable[[int], PreTrainedModel]
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    is_packed: bool


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind: [CLS] text [SEP]."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=VOCAB_SIZE, special_tokens=specials)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: <s> text </s>, with the padding id 1 that shifts its positions."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = _byte_level_bpe(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def suffix_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen3-Embedding's kind: text, then the token that is pooled."""
    specials = ["<|endoftext|>", "<|im_end|>"]
    tokenizer = _byte_level_bpe(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A $B <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )


def _byte_level_bpe(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}

ARCHITECTURES = {
    "bert": Architecture(
        lambda size: BertModel(BertConfig(vocab_size=size, **_SMALL)), wordpiece_tokenizer, is_packed=True
    ),
    "xlm-roberta": Architecture(
        lambda size: XLMRobertaModel(
            XLMRobertaConfig(vocab_size=size, type_vocab_size=1, **_SMALL | {"max_position_embeddings": 258})
        ),
        roberta_tokenizer,
        is_packed=True,
    ),
    "modernbert": Architecture(
        lambda size: ModernBertModel(
            ModernBertConfig(
                vocab_size=size,
                local_attention=16,
                global_attn_every_n_layers=2,
                pad_token_id=0,
                bos_token_id=2,
                cls_token_id=2,
                eos_token_id=3,
                sep_token_id=3,
                **_SMALL,
            )
        ),
        wordpiece_tokenizer,
        is_packed=True,
    ),
    "qwen3": Architecture(
        lambda size: Qwen3Model(Qwen3Config(vocab_size=size, num_key_value_heads=2, head_dim=8, **_SMALL)),
        suffix_tokenizer,
        is_packed=True,
    ),
    "qwen2-sliding": Architecture(
        lambda size: Qwen2Model(
            Qwen2Config(
                vocab_size=size,
                num_key_value_heads=2,
                use_sliding_window=True,
                sliding_window=8,
                max_window_layers=1,
                **_SMALL,
            )
        ),
        suffix_tokenizer,
        is_packed=True,
    ),
    "t5": Architecture(
        lambda size: T5EncoderModel(
            T5Config(vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        ),
        roberta_tokenizer,
        is_packed=False,
    ),
    "mobilebert": Architecture(
        lambda size: MobileBertModel(
            MobileBertConfig(
                vocab_size=size,
                embedding_size=16,
                intra_bottleneck_size=32,
                **_SMALL | {"num_hidden_layers": 2},
            )
        ),
        wordpiece_tokenizer,
        is_packed=False,
    ),
    "mpnet": Architecture(
        lambda size: MPNetModel(MPNetConfig(vocab_size=size, **_SMALL)), roberta_tokenizer, is_packed=False
    ),
}


def build_checkpoint(
    folder: Path,
    architecture: str,
    *,
    pooling: str | tuple[str, ...] = "mean",
    normalize: bool = True,
    dense: bool = False,
    include_prompt: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    max_seq_length: int = 128,
) -> Path:
    """Write a checkpoint with sentence-transformers itself, and return its folder."""
    torch.manual_seed(0)
    made = ARCHITECTURES[architecture]
    tokenizer = made.tokenizer()
    transformer = made.model(len(tokenizer))
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    plain = folder / "plain"
    transformer.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    modules: list[torch.nn.Module] = [
        Transformer(str(plain), max_seq_length=max_seq_length),
        Pooling(32, pooling_mode=pooling, include_prompt=include_prompt),
    ]
    pooled_dimension = modules[-1].get_embedding_dimension()
    if dense:
        modules.append(Dense(pooled_dimension, 24))
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules, device="cpu", prompts=prompts, default_prompt_name=default_prompt_name
    )
    model.save(str(folder / "st"), create_model_card=False)
    return folder / "st"
