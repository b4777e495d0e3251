"""Loads a checkpoint into an encoder, through gates that each stop a way of serving wrong vectors.

The gates: safetensors only and never the checkpoint's code; every weight present, none left over inside the
modules that compute; a precision the architecture bears; a tokenizer whose ids all have an embedding; the
packing probe; the output's dimension. What passes them is stamped with a fingerprint.
"""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging

from model.checkpoint import Card, file_sha256, find_card
from model.encoder import Backbone, TransformerEncoder, position_padding_idx
from model.errors import CheckpointError
from model.families.family import HeadKind, ImageRecipe, Recipe, Template, Towers
from model.head import load_head
from model.prepack import prepack_linear_layers
from model.registry import find_family
from model.types import Features, ImageInputs, ImageTokens, ModelInfo, PromptTemplate
from model.vision import TwoTowerBackbone
from model.worker.protocol import LoadOptions, OnStage

# Gemma's activations overflow float16 (EmbeddingGemma's card says bfloat16 or float32), and so do T5's
# feed-forward layers (transformers keeps them in float32 for that).
FLOAT16_FORBIDDEN = frozenset({"gemma3_text", "gemma2", "gemma", "t5", "mt5", "umt5"})

# Encoder-decoders of which only the encoder embeds, whether or not their configuration says so.
_ENCODER_ONLY = frozenset({"t5", "mt5", "umt5", "t5gemma"})

_SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_NO_LIMIT = 1_000_000
"""Tokenizers that know no limit say so by an astronomic one."""


def load_encoder(options: LoadOptions, on_stage: OnStage) -> TransformerEncoder:
    """Load, check, probe and warm up.

    Raises:
        CheckpointError: A gate is closed; the message says which and what to do.
    """
    folder = Path(options.folder)
    on_stage("reading the checkpoint")
    family = find_family(folder, source=options.source, name=options.family)
    recipe = family.read(folder, options)
    config = _load_config(recipe)
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
    max_tokens = _max_tokens(options, recipe, config, transformer, tokenizer)
    card = find_card(options.source)
    images = None if recipe.images is None else _image_inputs(recipe.images, tokenizer, folder)
    with _gate(f"{options.source}: a trial pass failed"):
        on_stage("trying packed passes")
        if recipe.towers is not None:
            assert recipe.images is not None and images is not None, "a vision tower reads images"
            backbone = TwoTowerBackbone(
                transformer, recipe.towers, recipe.images, pad_id=images.tokens.pad
            )
            backbone.check_passes(vocab_size=len(tokenizer))
        else:
            backbone = Backbone(transformer, pad_id=tokenizer.pad_token_id or 0)
            backbone.choose_passes(
                max_tokens=max_tokens,
                special_ids=tokenizer.all_special_ids,
                vocab_size=len(tokenizer),
                may_pack=not options.pad_passes,
            )

    tokenizer_json = _tokenizer_json(tokenizer, lowercase=recipe.lowercase)
    device = backbone.device
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
        matryoshka_dimensions=(),
        tokenizer_json=tokenizer_json,
        fingerprint=_fingerprint(recipe, options, tokenizer_json, dtype, max_tokens),
        license=card.license,
        note=card.note,
        template=None if recipe.template is None else _prompt_template(recipe.template, tokenizer, folder),
        images=images,
    )
    encoder = TransformerEncoder(
        backbone=backbone,
        token_head=load_head([module for module in recipe.head if module.on_tokens], device),
        head=load_head([module for module in recipe.head if not module.on_tokens], device),
        recipe=recipe,
        info=info,
    )
    on_stage("warming up")
    with _gate(f"{options.source}: a trial pass failed"):
        dimension = _checked_dimension(encoder, recipe, options, max_tokens)
    encoder.info = replace(
        info,
        dimension=dimension,
        matryoshka_dimensions=_matryoshka_dimensions(options, card, dimension),
    )
    return encoder


@contextmanager
def _gate(what: str) -> Generator[None]:
    """Whatever a strange checkpoint makes of the block is a refusal in one line, not a crash."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{what} ({type(error).__name__}: {_first_line(error)})") from error


def _load_config(recipe: Recipe) -> PretrainedConfig:
    folder = recipe.transformer_folder
    if recipe.towers is not None:
        # Built from the raw file: its own ``auto_map`` would ask for the checkpoint's code.
        with _gate(f"{folder / 'config.json'} cannot be read"):
            return getattr(transformers, recipe.towers.config_class)(**recipe.towers.config)
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
    is_half_forbidden = config.model_type in FLOAT16_FORBIDDEN
    if options.dtype == "auto":
        if not options.device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if is_half_forbidden else torch.float16
    dtype = getattr(torch, options.dtype, None)
    if dtype not in _SERVED_DTYPES:
        raise CheckpointError(f"dtype {options.dtype!r} is not one of float32, bfloat16, float16")
    if dtype is torch.float16 and is_half_forbidden:
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
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter; merge it into its model before serving it")
    if recipe.towers is not None:
        model_class, key_mapping = getattr(transformers, recipe.towers.model_class), recipe.towers.key_mapping
    elif config.is_encoder_decoder or config.model_type in _ENCODER_ONLY:
        model_class, key_mapping = AutoModelForTextEncoding, None
    else:
        model_class, key_mapping = AutoModel, None
    try:
        transformer, keys = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            key_mapping=key_mapping,
            output_loading_info=True,
            # A class by its name runs no code of the checkpoint's anyway, and does not know the word.
            **({} if recipe.towers is not None else {"trust_remote_code": False}),
        )
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{folder} does not fit the memory of {device}; try a smaller --dtype or another --device"
        ) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be loaded: {_first_line(error)}") from error
    _check_keys(transformer, keys, recipe)
    try:
        return transformer.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"the model cannot be moved to {device}: {_first_line(error)}; start with --device cpu, "
            "a smaller --dtype, or a build of torch for this device"
        ) from error


def _check_keys(transformer: Any, keys: Any, recipe: Recipe) -> None:
    """Every weight that computes must come from the file, and none of the file's may be left out of them."""
    folder = recipe.transformer_folder
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
    left_over = sorted(
        key for key in keys["unexpected_keys"] if not _is_free_of_use(key, transformer, recipe.towers)
    )
    if left_over:
        raise CheckpointError(
            f"{folder} has {len(left_over)} weights that {type(transformer).__name__} has no place for, "
            f"the first is {left_over[0]}; its vectors would be wrong"
        )


def _is_free_of_use(key: str, transformer: Any, towers: Towers | None) -> bool:
    """Whether a weight that the class has no place for may be left out."""
    if towers is not None:
        return key in towers.ignored_weights
    own_prefix = f"{transformer.base_model_prefix}."
    parts = tuple(f"{name}." for name, _ in transformer.named_children() if name != "pooler")
    computes = key.removeprefix(own_prefix).startswith(parts) or "lora_" in key or "adapter" in key
    return not computes or key.endswith("position_ids")


def _prompt_template(template: Template, tokenizer: Any, folder: Path) -> PromptTemplate:
    special_ids = tokenizer.get_added_vocab()
    return PromptTemplate(
        pieces=tuple(
            _special_id(piece, special_ids, folder) if piece.startswith("<|") else piece
            for piece in template.pieces
        ),
        default_instruction=template.default_instruction,
        instructs_documents=template.instructs_documents,
    )


def _image_inputs(recipe: ImageRecipe, tokenizer: Any, folder: Path) -> ImageInputs:
    special_ids = tokenizer.get_added_vocab()
    return ImageInputs(
        spec=recipe.spec,
        tokens=ImageTokens(
            start=(_special_id(recipe.start_token, special_ids, folder),),
            pad=_special_id(recipe.pad_token, special_ids, folder),
            end=(_special_id(recipe.end_token, special_ids, folder),),
        ),
        max_images=recipe.max_images,
        is_fused_with_text=recipe.is_fused_with_text,
    )


def _special_id(token: str, special_ids: Mapping[str, int], folder: Path) -> int:
    if token not in special_ids:
        raise CheckpointError(f"the tokenizer in {folder} has no token {token}, which the model's prompt needs")
    return special_ids[token]


def _max_tokens(
    options: LoadOptions, recipe: Recipe, config: PretrainedConfig, transformer: Any, tokenizer: Any
) -> int:
    """The least of what was asked for, the checkpoint's own limit, and the positions it has."""
    limits = [recipe.max_tokens or tokenizer.model_max_length, options.max_tokens]
    if recipe.reads_more_on_request and options.max_tokens:
        limits = [options.max_tokens]
    num_positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(num_positions, int) and num_positions > 0:
        # RoBERTa's line keeps the first rows of its table for padding.
        padding_idx = position_padding_idx(transformer)
        limits.append(num_positions - (0 if padding_idx is None else padding_idx + 1))
    max_tokens = min(int(limit) for limit in limits if limit)
    if max_tokens > _NO_LIMIT:
        raise CheckpointError(f"{options.source} does not say how many tokens it reads; give --max-tokens")
    return max_tokens


def _matryoshka_dimensions(options: LoadOptions, card: Card, dimension: int) -> tuple[int, ...]:
    too_large = [size for size in options.matryoshka_dimensions if not 0 < size <= dimension]
    if too_large:
        raise CheckpointError(
            f"dimensions: {options.source} gives vectors of {dimension}, not of {too_large[0]}"
        )
    sizes = options.matryoshka_dimensions or card.matryoshka_dimensions
    return tuple(sorted({size for size in sizes if size < dimension}, reverse=True))


def _tokenizer_json(tokenizer: Any, *, lowercase: bool) -> str:
    backend = tokenizer.backend_tokenizer
    if lowercase and "Lowercase" not in repr(backend.normalizer):
        backend.normalizer = NormalizerSequence(
            [Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        )
    return backend.to_str()


def _checked_dimension(encoder: TransformerEncoder, recipe: Recipe, options: LoadOptions, max_tokens: int) -> int:
    """Run the smallest and a long input; returns D, which must be what the checkpoint says."""
    token_id = min(1, encoder.info.vocab_size - 1)
    shortest = Features(token_ids=np.array([token_id], dtype=np.int32))
    longest = Features(token_ids=np.full(min(max_tokens, 512), token_id, dtype=np.int32))
    rows_BD = encoder.encode([shortest, longest])
    if not np.isfinite(rows_BD).all():
        raise CheckpointError(
            f"{options.source} gives vectors that are not finite in {encoder.info.dtype}; "
            "start with --dtype float32 or bfloat16"
        )
    dimension = int(rows_BD.shape[1])
    if recipe.dimension not in (None, dimension):
        raise CheckpointError(
            f"{options.source} gives vectors of {dimension}, but its own files say {recipe.dimension}"
        )
    return dimension


def _fingerprint(
    recipe: Recipe, options: LoadOptions, tokenizer_json: str, dtype: torch.dtype, max_tokens: int
) -> str:
    """sha256 over everything that changes a vector, every byte of the weights included."""
    home = recipe.transformer_folder
    folders = {home: "", **{m.folder: m.folder.name for m in recipe.head if m.folder != home}}
    described = asdict(recipe)
    described["transformer_folder"] = ""
    described["head"] = [{**asdict(module), "folder": folders[module.folder]} for module in recipe.head]
    described |= {
        "dtype": str(dtype),
        "max_tokens": max_tokens,
        "quantization": options.quantization,
        "image_options": None if recipe.images is None else asdict(options.images),
        "tokenizer": hashlib.sha256(tokenizer_json.encode()).hexdigest(),
        "config": file_sha256(home / "config.json"),
        "transformers": transformers.__version__,
        "weights": sorted(
            (name, file.name, file_sha256(file))
            for folder, name in folders.items()
            for file in folder.glob("*.safetensors")
        ),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


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
