"""GME-Qwen2-VL with random weights of the published sizes, as a worker's model: the real time, without a download.

Texts only, and another model's tokenizer: the ids that it gives are all in GME's vocabulary, and what they mean
makes no difference to weights that mean nothing.
"""

import hashlib
from pathlib import Path

import torch

from bench.gme import SHAPES, build
from model import ModelInfo
from model.encoder import TransformerEncoder
from model.worker import LoadOptions, OnStage

MAX_TOKENS = 8_192
"""GME's authors stop at 1,800; the positions go on, and a document this long is the hard case."""


def load_2b(options: LoadOptions, on_stage: OnStage) -> TransformerEncoder:
    """GME-Qwen2-VL-2B's shape."""
    return _load("2b", options, on_stage)


def load_7b(options: LoadOptions, on_stage: OnStage) -> TransformerEncoder:
    """GME-Qwen2-VL-7B's shape."""
    return _load("7b", options, on_stage)


def load_tiny(options: LoadOptions, on_stage: OnStage) -> TransformerEncoder:
    """Two layers of 64, to try this where there is no GPU."""
    return _load("tiny", options, on_stage)


def _load(size: str, options: LoadOptions, on_stage: OnStage) -> TransformerEncoder:
    on_stage("drawing weights")
    is_cpu = options.device == "cpu"
    dtype = options.dtype if options.dtype != "auto" else "float32" if is_cpu else "float16"
    shape = SHAPES[size]
    model = build(
        shape, device=options.device, dtype=getattr(torch, dtype), quantization=options.quantization
    )
    info = ModelInfo(
        source=options.source,
        family="gme",
        architecture=f"GME {size}, random weights",
        dimension=shape.hidden,
        max_tokens=min(MAX_TOKENS, options.max_tokens or MAX_TOKENS),
        vocab_size=shape.vocabulary,
        num_parameters=model.num_parameters,
        dtype=dtype,
        device=options.device,
        pooling="last_token",
        is_normalized=True,
        is_packed=True,
        packing_note=model.packing_note,
        prompts={},
        default_prompt_name=None,
        include_prompt=True,
        matryoshka_dimensions=(),
        tokenizer_json=(Path(options.folder) / "tokenizer.json").read_text(),
        fingerprint=hashlib.sha256(f"{size} {dtype} {options.quantization}".encode()).hexdigest(),
        note="Random weights: vectors mean nothing.",
    )
    return TransformerEncoder(model.layers, info)
