"""A fingerprint: sha256 over everything that changes a vector. Equal ones: vectors may be compared."""

import hashlib
import json
from dataclasses import asdict

import PIL
import transformers

from model.checkpoint import file_sha256
from model.families.family import Recipe
from model.worker.protocol import ImageOptions, LoadOptions


def fingerprint(
    recipe: Recipe, options: LoadOptions, *, tokenizer_json: str, dtype: str, max_tokens: int
) -> str:
    """Hex digest of the recipe, of what was decided at load, and of every byte of the weights.

    Where the checkpoint lies, and what it is called, are no part of it.
    """
    home = recipe.transformer_folder
    folders = {home: "", **{m.folder: m.folder.name for m in recipe.head if m.folder != home}}
    described = asdict(recipe)
    described["transformer_folder"] = ""
    described["head"] = [{**asdict(module), "folder": folders[module.folder]} for module in recipe.head]
    described |= {
        "dtype": dtype,
        "max_tokens": max_tokens,
        "quantization": options.quantization,
        "image_options": None if recipe.images is None else _described_images(options.images),
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


def _described_images(options: ImageOptions) -> dict[str, str]:
    """What decides about an image besides its sizes, which the recipe has as they came out."""
    return {
        "orientation": options.orientation,
        "alpha": options.alpha,
        # Pillow 13.0 resizes in another order than 12, and a third of an image's values differ by one. Not
        # the third number: a corrected decoder must not ask for a new index.
        "pillow": ".".join(PIL.__version__.split(".")[:2]),
    }
