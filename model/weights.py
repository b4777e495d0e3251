"""A checkpoint's configuration and weights, in the transformers class that computes with them.

The gates: safetensors only and never the checkpoint's code; every weight present, none left over inside the
modules that compute; a precision that the architecture bears.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PretrainedConfig
from transformers.utils import logging as transformers_logging

from model.errors import CheckpointError
from model.families.family import Recipe, Towers
from model.gate import first_line, gate
from model.quantize import quantize_linear_layers
from model.worker.protocol import LoadOptions, OnStage, Quantization

# Gemma's activations overflow float16 (EmbeddingGemma's card says bfloat16 or float32), and so do T5's
# feed-forward layers (transformers keeps them in float32 for that).
FLOAT16_FORBIDDEN = frozenset({"gemma3_text", "gemma2", "gemma", "t5", "mt5", "umt5"})

# Encoder-decoders of which only the encoder embeds, whether or not their configuration says so.
_ENCODER_ONLY = frozenset({"t5", "mt5", "umt5", "t5gemma"})

_SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load_config(recipe: Recipe) -> PretrainedConfig:
    """Read the model's configuration.

    Raises:
        CheckpointError: It is missing or malformed, or of an architecture that transformers does not know.
    """
    folder = recipe.transformer_folder
    if recipe.towers is not None:
        # Built from the raw file: its own ``auto_map`` would ask for the checkpoint's code.
        with gate(f"{folder / 'config.json'} cannot be read"):
            return getattr(transformers, recipe.towers.config_class)(**recipe.towers.config)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know the architecture in "
            f"{folder / 'config.json'} by itself, and a checkpoint's own code is never run here"
        ) from error


def resolve_dtype(options: LoadOptions, config: PretrainedConfig) -> torch.dtype:
    """What the model computes in.

    Raises:
        CheckpointError: It is none of the three that are served, or the architecture overflows in it.
    """
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


def load_transformer(
    recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype, options: LoadOptions, on_stage: OnStage
) -> Any:
    """Load the weights onto the device, in 8 bits where that is asked for.

    Raises:
        CheckpointError: Weights are missing, left over, of another shape or in pickles, or do not fit the
            device.
    """
    with _weights_progress(on_stage):
        transformer = _read_weights(recipe, config, dtype)
    if options.quantization is Quantization.INT8:
        on_stage("quantizing the weights")
        # Before they are moved: the device never holds them in full.
        quantize_linear_layers(
            transformer if recipe.towers is None else getattr(transformer, recipe.towers.text)
        )
    try:
        return transformer.to(options.device).eval()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{options.source} does not fit the memory of {options.device}; try a smaller --dtype, "
            "--quantize int8, or another --device"
        ) from error
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"the model cannot be moved to {options.device}: {first_line(error)}; start with --device cpu, "
            "or with a build of torch for this device"
        ) from error


def _read_weights(recipe: Recipe, config: PretrainedConfig, dtype: torch.dtype) -> Any:
    folder = recipe.transformer_folder
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} has no weights in safetensors; weights in pickles are never loaded")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{folder} holds an adapter; merge it into its model before serving it")
    options: dict[str, Any] = {}
    if recipe.towers is not None:
        # A class by its name runs no code of the checkpoint's, and does not know the word for it.
        model_class = getattr(transformers, recipe.towers.model_class)
        options["key_mapping"] = recipe.towers.key_mapping
    else:
        is_encoder_only = config.is_encoder_decoder or config.model_type in _ENCODER_ONLY
        model_class = AutoModelForTextEncoding if is_encoder_only else AutoModel
        options["trust_remote_code"] = False
    try:
        transformer, keys = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Told of them, the gate can name one; without, transformers prints a report and names none.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from error
    _check_keys(transformer, keys, recipe)
    return transformer


def _check_keys(transformer: Any, keys: Any, recipe: Recipe) -> None:
    """Every weight that computes must come from the file, and none of the file's may be left out of them."""
    folder = recipe.transformer_folder
    mismatched = sorted(keys["mismatched_keys"])
    if mismatched:
        name, shape, expected_shape = mismatched[0]
        raise CheckpointError(
            f"{folder} has {len(mismatched)} weights of another shape than its config.json says, the first "
            f"is {name}, {list(shape)} instead of {list(expected_shape)}"
        )
    missing = sorted(key for key in keys["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {type(transformer).__name__}, the first is "
            f"{missing[0]}"
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
