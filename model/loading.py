"""Loads a checkpoint into an encoder, through gates that each stop a way of serving wrong vectors.

The gates: safetensors only and never the checkpoint's code; every weight present, none left over inside the
modules that compute; a precision the architecture bears; a tokenizer whose ids all have an embedding; the
packing probe; the output's dimension. What passes them is stamped with a fingerprint.
"""

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from model.checkpoint import find_card
from model.encoder import Backbone, TextEncoder
from model.errors import CheckpointError
from model.families.family import HeadKind, Recipe
from model.head import load_head
from model.prepack import prepack_linear_layers
from model.registry import find_family
from model.types import Features, ModelInfo
from model.worker.protocol import LoadOptions, OnStage

# Gemma's activations overflow float16 (EmbeddingGemma's card says bfloat16 or float32).
FLOAT16_FORBIDDEN = frozenset({"gemma3_text", "gemma2", "gemma"})

_SAMPLED_BYTES = 64 * 1024
_NUM_SAMPLES = 64


def load_encoder(options: LoadOptions, on_stage: OnStage) -> TextEncoder:
    """Load, check, probe and warm up.

    Raises:
        CheckpointError: A gate is closed; the message says which and what to do.
    """
    folder = Path(options.folder)
    on_stage("reading the checkpoint")
    recipe = find_family(folder).read(folder)
    config = _load_config(recipe.transformer_folder)
    dtype = _resolve_dtype(options, config)
    tokenizer = _load_tokenizer(recipe)
    with _weights_progress(on_stage):
        transformer = _load_transformer(recipe, config, dtype, options.device)
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    if options.device == "cpu":
        prepack_linear_layers(transformer, max_bytes=options.max_prepacked_bytes)
    vocab_size = transformer.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"{options.source}: the tokenizer has {len(tokenizer)} ids, the model embeds {vocab_size}; "
            "files of two models are mixed"
        )
    max_tokens = _max_tokens(options, recipe, config, tokenizer)

    on_stage("probing packed passes")
    backbone = Backbone(transformer, pad_id=tokenizer.pad_token_id or 0)
    if options.pad_passes:
        backbone.packing_note = "padding was asked for"
    else:
        backbone.use_packing(
            max_tokens=max_tokens, special_ids=tokenizer.all_special_ids, vocab_size=len(tokenizer)
        )

    tokenizer_json = _tokenizer_json(tokenizer, lowercase=recipe.lowercase)
    device = backbone.device
    card = find_card(options.source)
    info = ModelInfo(
        source=options.source,
        family=recipe.family,
        architecture=type(transformer).__name__,
        dimension=0,
        max_tokens=max_tokens,
        vocab_size=vocab_size,
        num_parameters=num_parameters,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        pooling="+".join(recipe.pooling),
        is_normalized=any(module.kind is HeadKind.NORMALIZE for module in recipe.head[-1:]),
        is_packed=backbone.is_packed,
        packing_note=backbone.packing_note,
        prompts=recipe.prompts,
        default_prompt_name=recipe.default_prompt_name,
        include_prompt=recipe.include_prompt,
        matryoshka_dimensions=options.matryoshka_dimensions or card.matryoshka_dimensions,
        tokenizer_json=tokenizer_json,
        fingerprint=_fingerprint(recipe, tokenizer_json, dtype, max_tokens),
        license=card.license,
    )
    encoder = TextEncoder(
        backbone=backbone,
        token_head=load_head([module for module in recipe.head if module.on_tokens], device),
        head=load_head([module for module in recipe.head if not module.on_tokens], device),
        recipe=recipe,
        info=info,
    )
    on_stage("warming up")
    encoder.info = replace(info, dimension=_checked_dimension(encoder, options, max_tokens))
    return encoder


def _load_config(folder: Path) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know the architecture in "
            f"{folder / 'config.json'} "
            "by itself, and a checkpoint's own code is never run here"
        ) from error


def _resolve_dtype(options: LoadOptions, config: PretrainedConfig) -> torch.dtype:
    dtype = getattr(torch, options.dtype, None)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"dtype {options.dtype!r} is not one of float32, bfloat16, float16")
    if dtype is torch.float16 and config.model_type in FLOAT16_FORBIDDEN:
        raise CheckpointError(
            f"{config.model_type} models overflow in float16; start with --dtype bfloat16 or float32"
        )
    return dtype


def _load_tokenizer(recipe: Recipe) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(recipe.transformer_folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"the tokenizer in {recipe.transformer_folder} cannot be loaded: {_first_line(error)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"the tokenizer in {recipe.transformer_folder} has no tokenizer.json and cannot be converted to "
            "one"
        )
    return tokenizer


def _load_transformer(recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype, device: str) -> Any:
    folder = recipe.transformer_folder
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} has no weights in safetensors; weights in pickles are never loaded")
    # Of an encoder-decoder only the encoder embeds.
    auto_class = AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel
    try:
        transformer, keys = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{folder} does not fit the memory of {device}; try a smaller --dtype or another --device"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be loaded: {_first_line(error)}") from error
    _check_keys(transformer, keys, folder)
    # A pooler's output is not what any sentence-transformers pooling reads.
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None
    try:
        return transformer.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"the model cannot be moved to {device}: {_first_line(error)}") from error


def _check_keys(transformer: nn.Module, keys: Any, folder: Path) -> None:
    """Every weight that computes must come from the file, and none of the file's may be left out of them."""
    missing = sorted(key for key in keys["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {type(transformer).__name__}, the first is "
            f"{missing[0]}"
        )
    mismatched = sorted(str(key) for key in keys["mismatched_keys"])
    if mismatched:
        raise CheckpointError(
            f"{folder} has weights of another shape than its config.json says, the first is {mismatched[0]}"
        )
    parts = tuple(f"{name}." for name, _ in transformer.named_children() if name != "pooler")
    left_over = sorted(
        key for key in keys["unexpected_keys"] if key.startswith(parts) and not key.endswith("position_ids")
    )
    if left_over:
        raise CheckpointError(
            f"{folder} has {len(left_over)} weights that {type(transformer).__name__} has no place for, "
            f"the first is {left_over[0]}; its vectors would be wrong"
        )


def _max_tokens(options: LoadOptions, recipe: Recipe, config: PretrainedConfig, tokenizer: Any) -> int:
    """The least of what was asked for, the checkpoint's own limit, and the positions it has."""
    positions = getattr(config, "max_position_embeddings", None)
    limits = [recipe.max_tokens or tokenizer.model_max_length, options.max_tokens]
    if isinstance(positions, int) and positions > 0:
        # RoBERTa's line uses the first rows of its table for padding.
        has_offset = "roberta" in config.model_type or config.model_type in (
            "camembert",
            "mpnet",
            "xlm-roberta-xl",
        )
        limits.append(
            positions - (config.pad_token_id + 1 if has_offset and config.pad_token_id is not None else 0)
        )
    return min(int(limit) for limit in limits if limit)


def _tokenizer_json(tokenizer: Any, *, lowercase: bool) -> str:
    backend = tokenizer.backend_tokenizer
    if lowercase and "Lowercase" not in repr(backend.normalizer):
        backend.normalizer = NormalizerSequence(
            [Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        )
    return backend.to_str()


def _checked_dimension(encoder: TextEncoder, options: LoadOptions, max_tokens: int) -> int:
    """Run the smallest and the longest input; returns D."""
    token_id = min(1, encoder.info.vocab_size - 1)
    shortest = Features(token_ids=np.array([token_id], dtype=np.int32))
    longest = Features(token_ids=np.full(min(max_tokens, 512), token_id, dtype=np.int32))
    rows_BD = encoder.encode([shortest, longest])
    if rows_BD.ndim != 2 or not np.isfinite(rows_BD).all():
        raise CheckpointError(
            f"{options.source} gives vectors that are not finite in {options.dtype}; start with --dtype "
            "float32 or bfloat16"
        )
    return int(rows_BD.shape[1])


def _fingerprint(recipe: Recipe, tokenizer_json: str, dtype: torch.dtype, max_tokens: int) -> str:
    """sha256 over everything that changes a vector.

    Weights enter by their safetensors header and by samples spread over each file, so that tens of
    gigabytes need not be read at every start; any retraining changes all of them.
    """
    digest = hashlib.sha256()
    described = asdict(recipe)
    described["transformer_folder"] = ""
    described["head"] = [{**asdict(module), "folder": module.folder.name} for module in recipe.head]
    described |= {
        "dtype": str(dtype),
        "max_tokens": max_tokens,
        "tokenizer": hashlib.sha256(tokenizer_json.encode()).hexdigest(),
        "config": hashlib.sha256((recipe.transformer_folder / "config.json").read_bytes()).hexdigest(),
        "transformers": transformers.__version__,
    }
    digest.update(json.dumps(described, sort_keys=True).encode())
    folders = {recipe.transformer_folder, *(module.folder for module in recipe.head)}
    for file in sorted(
        file for folder in folders if folder.is_dir() for file in folder.glob("*.safetensors")
    ):
        for sample in _samples(file):
            digest.update(sample)
    return digest.hexdigest()


def _samples(file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    with file.open("rb") as content:
        if size <= _NUM_SAMPLES * _SAMPLED_BYTES:
            yield content.read()
            return
        header_bytes = int.from_bytes(content.read(8), "little")
        yield content.read(header_bytes)
        for index in range(_NUM_SAMPLES):
            content.seek(index * (size - _SAMPLED_BYTES) // (_NUM_SAMPLES - 1))
            yield content.read(_SAMPLED_BYTES)


@contextmanager
def _weights_progress(on_stage: OnStage) -> Generator[None]:
    """Report transformers' progress bar as a stage instead of printing it."""

    class StageBar:
        def __init__(self, iterable: Any = None, total: int | None = None, **_: Any) -> None:
            self._items = iterable if iterable is not None else ()
            self._total = total or (len(self._items) if hasattr(self._items, "__len__") else 0)
            self._done = 0

        def __enter__(self) -> "StageBar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            for item in self._items:
                yield item
                self.update()

        def update(self, n: int = 1) -> None:
            self._done += n
            if self._total:
                on_stage(f"loading weights {100 * self._done // self._total}%")

        def __getattr__(self, name: str) -> Any:
            return lambda *_args, **_kwargs: None

    on_stage("loading weights 0%")
    previous = transformers_logging.set_tqdm_hook(lambda _factory, args, kwargs: StageBar(*args, **kwargs))
    # Its report of unused heads is what the gates decide upon; printed, it frightens people.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.set_tqdm_hook(previous)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
