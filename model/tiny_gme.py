"""A tiny GME checkpoint with random weights: everything that takes images can be tried on any machine.

It is laid out as the published ones are (a flat ``qwen2_vl`` configuration that names code of its own,
Qwen2's tokenizer files, ``visual.*`` and ``model.*`` weights), so it passes the same gates of the same
loader. Its vectors are repeatable, and mean nothing.

Law of this file: the same bytes on every machine, today and later. Weights are sums of bits from SHAKE-256
(FIPS 202), scaled by exact arithmetic, because NumPy may change what its generators draw (NEP 19), and
logarithms differ between C libraries.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from model.errors import CheckpointError

TINY_GME_NAME = "tiny-gme"
"""What people type to get it, and what it is called."""
RECIPE_VERSION = 1
"""Part of the folder's name: raise it with any change to what the files hold."""

_HIDDEN = 64
_INTERMEDIATE = 128
_LAYERS = 2
_HEADS = 4
_KEY_VALUE_HEADS = 2
_HEAD = _HIDDEN // _HEADS
_VOCABULARY = 448
_VISION_HIDDEN = 32
_VISION_INTERMEDIATE = 4 * _VISION_HIDDEN
_VISION_LAYERS = 2
_VISION_HEADS = 2
_PATCH = 14
_FRAMES = 2
_MERGE = 2

# In the order in which Qwen2-VL's tokenizer appends them.
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Words that are one token each behind a space; the vocabulary of bytes spells all others.
_WORDS = """
    a an and are as at be by for from in is it of on or that the this to with you helpful assistant
    image photo text red green blue white black cat dog car house tree water
"""

_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""How a byte-level vocabulary writes the space."""


def build_tiny_gme() -> Path:
    """Put the checkpoint into the user's cache, unless it lies there whole.

    Returns:
        Its folder.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    try:
        folder = _cache_folder() / f"{TINY_GME_NAME}-{RECIPE_VERSION}"
        write_files(folder, tiny_gme_files())
    except (OSError, RuntimeError) as error:
        # RuntimeError: pathlib found no home folder.
        raise CheckpointError(
            f"{TINY_GME_NAME} is built in the user's cache, and that cannot be written ({error}); point "
            "XDG_CACHE_HOME at a folder that can"
        ) from error
    return folder


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make the files of the folder have these contents; those that have them are left alone.

    Each is written beside its place and renamed: another process that does the same at the same time, or
    reads meanwhile, sees whole files only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if path.is_file() and path.read_bytes() == content:
            continue
        partial = folder / f".{name}.{secrets.token_hex(8)}"
        partial.write_bytes(content)
        partial.replace(path)


def tiny_gme_files() -> dict[str, bytes]:
    """The checkpoint's files by name."""
    merges = list(_merges())
    pieces = [*_byte_alphabet(), *("".join(pair) for pair in merges)]
    special_ids = {token: len(pieces) + index for index, token in enumerate(_SPECIAL_TOKENS)}
    assert len(pieces) + len(special_ids) <= _VOCABULARY, "every id needs an embedding"
    return {
        "config.json": _as_json(_config(special_ids)),
        "preprocessor_config.json": _as_json(_preprocessor_config()),
        "tokenizer_config.json": _as_json(_tokenizer_config(special_ids)),
        "vocab.json": _as_json({piece: index for index, piece in enumerate(pieces)}),
        "merges.txt": "".join(f"{left} {right}\n" for left, right in merges).encode(),
        # Loaders refuse weights that do not say which framework's layout they have.
        "model.safetensors": save(_weights(), metadata={"format": "pt"}),
    }


def _cache_folder() -> Path:
    """Where users keep what can be made again (XDG Base Directory 0.8)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "laneway")


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


# Tokenizer -------------------------------------------------------------------------------------------------


def _byte_alphabet() -> list[str]:
    """A letter for each of the 256 bytes, as GPT-2's vocabulary and Qwen2's have them.

    Bytes that print as themselves in Latin-1 keep their character; the others take those from U+0100 up.
    """
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = (byte for byte in range(256) if byte not in printed)
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def _merges() -> Iterator[tuple[str, str]]:
    """The merges that put the words together, letter after letter, each once."""
    known: set[str] = set()
    for word in _WORDS.split():
        piece = _SPACE
        for letter in word:
            if piece + letter not in known:
                known.add(piece + letter)
                yield piece, letter
            piece += letter


def _tokenizer_config(special_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(token_id): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, token_id in special_ids.items()
        },
        "additional_special_tokens": list(_SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 32_768,
    }


# Configuration ---------------------------------------------------------------------------------------------


def _config(special_ids: Mapping[str, int]) -> dict[str, Any]:
    """In the flat form that Qwen2-VL had before transformers 4.52, in which GME was published."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        # As published; no such file is here, and none would be run.
        "auto_map": {
            "AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL",
            "AutoConfig": "modeling_gme_qwen2vl.GmeQwen2VLConfig",
        },
        "model_type": "qwen2_vl",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_VALUE_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768,
        "max_window_layers": _LAYERS,
        "use_sliding_window": False,
        "sliding_window": 32_768,
        "rope_theta": 1_000_000.0,
        # Pairs of a head's dimensions for time, row and column: half a head together.
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": special_ids["<|endoftext|>"],
        "eos_token_id": special_ids["<|im_end|>"],
        "vision_start_token_id": special_ids["<|vision_start|>"],
        "vision_end_token_id": special_ids["<|vision_end|>"],
        "vision_token_id": special_ids["<|vision_pad|>"],
        "image_token_id": special_ids["<|image_pad|>"],
        "video_token_id": special_ids["<|video_pad|>"],
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": _VISION_LAYERS,
            "embed_dim": _VISION_HIDDEN,
            "num_heads": _VISION_HEADS,
            "mlp_ratio": _VISION_INTERMEDIATE // _VISION_HIDDEN,
            "hidden_size": _HIDDEN,
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": _PATCH,
            "spatial_patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": _FRAMES,
        },
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12_845_056,
        "patch_size": _PATCH,
        "temporal_patch_size": _FRAMES,
        "merge_size": _MERGE,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }


# Weights ---------------------------------------------------------------------------------------------------


def _weights() -> dict[str, npt.NDArray[np.float32]]:
    return {name: _weight(name, shape) for name, shape in _shapes().items()}


def _weight(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Norms begin as the identity and biases at nothing; all else is random.

    The deviation keeps the size of what passes through. transformers' own 0.02 would shrink it, layer by
    layer, until all inputs have nearly the same vector.
    """
    if len(shape) == 1:
        return np.full(shape, 1 if name.endswith(".weight") else 0, dtype="<f4")
    deviation = 1 / math.sqrt(math.prod(shape[1:]))
    return (deviation * _nearly_normal(name, math.prod(shape))).astype("<f4").reshape(shape)


def _nearly_normal(seed: str, count: int) -> npt.NDArray[np.float64]:
    """``[count]`` numbers of mean 0 and deviation 1, each a sum of four uniform ones."""
    bits = hashlib.shake_256(seed.encode()).digest(8 * count)
    sums = np.frombuffer(bits, dtype="<u2").reshape(count, 4).sum(axis=1, dtype=np.int64)
    # A uniform number below n has mean (n - 1) / 2 and variance (n^2 - 1) / 12.
    return (sums - 2 * 65_535) / math.sqrt(4 * (65_536**2 - 1) / 12)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every weight of a Qwen2-VL of this size, by its name in the published checkpoints."""
    key_value = _KEY_VALUE_HEADS * _HEAD
    merged = _MERGE**2 * _VISION_HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
        "visual.patch_embed.proj.weight": (_VISION_HIDDEN, 3, _FRAMES, _PATCH, _PATCH),
        "visual.merger.ln_q.weight": (_VISION_HIDDEN,),
        "visual.merger.ln_q.bias": (_VISION_HIDDEN,),
        **_linear("visual.merger.mlp.0", merged, merged),
        **_linear("visual.merger.mlp.2", merged, _HIDDEN),
    }
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (_HIDDEN,),
            f"{prefix}.post_attention_layernorm.weight": (_HIDDEN,),
            **_linear(f"{prefix}.self_attn.q_proj", _HIDDEN, _HIDDEN),
            **_linear(f"{prefix}.self_attn.k_proj", _HIDDEN, key_value),
            **_linear(f"{prefix}.self_attn.v_proj", _HIDDEN, key_value),
            f"{prefix}.self_attn.o_proj.weight": (_HIDDEN, _HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": (_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
        }
    for layer in range(_VISION_LAYERS):
        prefix = f"visual.blocks.{layer}"
        shapes |= {
            f"{prefix}.norm1.weight": (_VISION_HIDDEN,),
            f"{prefix}.norm1.bias": (_VISION_HIDDEN,),
            f"{prefix}.norm2.weight": (_VISION_HIDDEN,),
            f"{prefix}.norm2.bias": (_VISION_HIDDEN,),
            **_linear(f"{prefix}.attn.qkv", _VISION_HIDDEN, 3 * _VISION_HIDDEN),
            **_linear(f"{prefix}.attn.proj", _VISION_HIDDEN, _VISION_HIDDEN),
            **_linear(f"{prefix}.mlp.fc1", _VISION_HIDDEN, _VISION_INTERMEDIATE),
            **_linear(f"{prefix}.mlp.fc2", _VISION_INTERMEDIATE, _VISION_HIDDEN),
        }
    return shapes


def _linear(name: str, num_inputs: int, num_outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_outputs, num_inputs), f"{name}.bias": (num_outputs,)}
