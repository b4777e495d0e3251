"""Loads a checkpoint into an encoder, through gates that each stop a way of serving wrong vectors.

The gates: those of the weights (``weights.py``) and of the family; a tokenizer whose ids all have an
embedding; the packing probe; the output's dimension; room for the largest image. What passes them is stamped
with a fingerprint.
"""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from model.checkpoint import Card, find_card
from model.encoder import Backbone, Layers, TransformerEncoder, position_padding_idx
from model.errors import CheckpointError, InputTooLongError
from model.families.family import HeadKind, Recipe
from model.fingerprint import fingerprint
from model.gate import gate
from model.head import load_head
from model.images.spec import DecodedImage
from model.prepack import prepack_linear_layers
from model.prepare import Preparer
from model.registry import find_family
from model.tokenizer import image_inputs, load_tokenizer, prompt_template, tokenizer_json
from model.types import EmbeddingInput, Features, ImageInputs, ModelInfo
from model.vision import TwoTowerBackbone
from model.weights import load_config, load_transformer, resolve_dtype
from model.worker.protocol import LoadOptions, OnStage

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
    config = load_config(recipe)
    dtype = resolve_dtype(options, config)
    tokenizer = load_tokenizer(recipe)
    template = None if recipe.template is None else prompt_template(recipe.template, tokenizer)
    images = None if recipe.images is None else image_inputs(recipe.images, tokenizer)
    transformer = load_transformer(recipe, config, dtype, options, on_stage)
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
    on_stage("trying packed passes")
    with gate(f"{options.source}: a trial pass failed"):
        backbone = _probed_backbone(
            transformer, recipe, images, tokenizer, max_tokens=max_tokens, may_pack=not options.pad_passes
        )
    layers = Layers(
        backbone=backbone,
        token_head=load_head([module for module in recipe.head if module.on_tokens], backbone.device),
        pooling=recipe.pooling,
        head=load_head([module for module in recipe.head if not module.on_tokens], backbone.device),
    )
    on_stage("warming up")
    with gate(f"{options.source}: a trial pass failed"):
        dimension = _checked_dimension(layers, recipe, options, vocab_size=vocab_size, max_tokens=max_tokens)
    card = find_card(options.source)
    dtype_name = str(dtype).removeprefix("torch.")
    tokenizer_text = tokenizer_json(tokenizer, lowercase=recipe.lowercase)
    info = ModelInfo(
        source=options.source,
        family=recipe.family,
        architecture=type(transformer).__name__,
        dimension=dimension,
        max_tokens=max_tokens,
        vocab_size=vocab_size,
        num_parameters=num_parameters,
        dtype=dtype_name,
        device=str(backbone.device),
        pooling="+".join(recipe.pooling),
        is_normalized=any(module.kind is HeadKind.NORMALIZE for module in recipe.head[-1:]),
        is_packed=backbone.is_packed,
        packing_note=backbone.packing_note,
        prompts=recipe.prompts,
        default_prompt_name=recipe.default_prompt_name,
        include_prompt=recipe.include_prompt,
        matryoshka_dimensions=_matryoshka_dimensions(options, card, dimension),
        tokenizer_json=tokenizer_text,
        fingerprint=fingerprint(
            recipe, options, tokenizer_json=tokenizer_text, dtype=dtype_name, max_tokens=max_tokens
        ),
        license=card.license,
        note=card.note,
        template=template,
        images=images,
    )
    _check_image_fits(info)
    return TransformerEncoder(layers, info)


def _probed_backbone(
    transformer: Any,
    recipe: Recipe,
    images: ImageInputs | None,
    tokenizer: Any,
    *,
    max_tokens: int,
    may_pack: bool,
) -> Backbone | TwoTowerBackbone:
    if recipe.towers is not None:
        assert recipe.images is not None, "a family with a vision tower reads images"
        assert images is not None, "a recipe for images has their tokens"
        towers = TwoTowerBackbone(transformer, recipe.towers, recipe.images, pad_id=images.tokens.pad)
        towers.check_passes(vocab_size=len(tokenizer))
        return towers
    backbone = Backbone(transformer, pad_id=tokenizer.pad_token_id or 0)
    backbone.choose_passes(
        max_tokens=max_tokens,
        special_ids=tokenizer.all_special_ids,
        vocab_size=len(tokenizer),
        may_pack=may_pack,
    )
    return backbone


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


def _checked_dimension(
    layers: Layers, recipe: Recipe, options: LoadOptions, *, vocab_size: int, max_tokens: int
) -> int:
    """Run the smallest and a long input; returns D, which must be what the checkpoint says."""
    token_id = min(1, vocab_size - 1)
    shortest = Features(token_ids=np.array([token_id], dtype=np.int32))
    longest = Features(token_ids=np.full(min(max_tokens, 512), token_id, dtype=np.int32))
    rows_BD = layers.rows([shortest, longest])
    if not np.isfinite(rows_BD).all():
        raise CheckpointError(
            f"{options.source} gives vectors that are not finite in {options.dtype}; "
            "start with --dtype float32 or bfloat16"
        )
    dimension = int(rows_BD.shape[1])
    if recipe.dimension not in (None, dimension):
        raise CheckpointError(
            f"{options.source} gives vectors of {dimension}, but its own files say {recipe.dimension}"
        )
    return dimension


def _check_image_fits(info: ModelInfo) -> None:
    """Refuse bounds that the largest images break, before requests find out one by one."""
    if info.images is None:
        return
    max_image_tokens = info.images.spec.max_tokens
    largest = DecodedImage(pixels=np.empty((0, 0, 3), dtype=np.uint8), num_tokens=max_image_tokens)
    [features] = Preparer(info).prepare([EmbeddingInput(images=(largest,))])
    if isinstance(features, InputTooLongError):
        room = info.max_tokens - (features.num_tokens - max_image_tokens)
        lower = "--max-image-tokens"
        if room < info.images.spec.resizes[-1].min_tokens:
            lower += " and --min-image-tokens"
        advice = f", or lower {lower} to {room}" if room > 0 else ""
        raise CheckpointError(
            f"an image of {max_image_tokens} tokens is an input of {features.num_tokens}, and {info.source} "
            f"reads {info.max_tokens}; raise --max-tokens{advice}"
        )
