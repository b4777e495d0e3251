"""What a family of models is: how to recognise its checkpoints, and how to read one into a recipe.

A family is one small file beside this one. A checkpoint is data: its files, read into a ``Recipe``, say
everything that turns token ids into a vector; loading, packing, pooling and the gates are shared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.images.spec import ImageSpec
from model.pooling import Pooling
from model.worker.protocol import LoadOptions


class HeadKind(StrEnum):
    """A module behind the transformer."""

    DENSE = "dense"
    LAYER_NORM = "layer_norm"
    NORMALIZE = "normalize"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadModule:
    """One module behind the transformer, in the order of the checkpoint."""

    kind: HeadKind
    folder: Path
    """Holds ``model.safetensors`` where the module has weights."""
    config: dict[str, Any] = field(default_factory=dict)
    on_tokens: bool = False
    """Works on every token's hidden state, before pooling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The fixed row of tokens around an input, as the family knows it: by words."""

    pieces: tuple[str, ...]
    """Special tokens by name, and between them texts with slots; see ``PromptTemplate``."""
    default_instruction: str
    instructs_documents: bool


class Positions(StrEnum):
    """How the tokens of a row are numbered for rotary positions of three axes."""

    SEQUENTIAL = "sequential"
    """0, 1, 2, ... on all three axes, whatever a token stands for."""
    GRID = "grid"
    """Images by time, row and column (M-RoPE, arXiv:2409.12191)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """How a checkpoint with a vision tower and a text tower is loaded and called."""

    model_class: str
    """Of transformers; it holds both towers."""
    config_class: str
    """Of transformers."""
    config: dict[str, Any]
    """What the configuration is built from: the checkpoint's own, without what names its code."""
    key_mapping: dict[str, str]
    """Patterns of weight names in checkpoints of any age, and what the class calls them."""
    ignored_weights: tuple[str, ...]
    """Weights of the checkpoint that embedding has no use for."""
    vision: str
    """Attribute of the vision tower."""
    text: str
    """Attribute of the text tower."""
    positions: Positions


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecipe:
    """What becomes of an image before the vision tower sees it, and how it stands among the tokens."""

    spec: ImageSpec
    temporal_patch_size: int
    """Frames in a patch; a still image is repeated so often."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of the three colours, on a scale of 0 to 1."""
    start_token: str
    pad_token: str
    end_token: str
    max_images: int
    """In one input."""
    is_fused_with_text: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything besides the weights that decides what vector an input gets."""

    family: str
    transformer_folder: Path
    pooling: tuple[Pooling, ...]
    include_prompt: bool
    head: tuple[HeadModule, ...]
    prompts: dict[str, str]
    default_prompt_name: str | None
    max_tokens: int | None
    """What the checkpoint says it reads. ``None``: what its tokenizer and its positions allow."""
    dimension: int | None
    """D as the checkpoint states it. ``None``: it does not."""
    lowercase: bool = False
    """Texts are lower-cased before tokenising, whatever the tokenizer does."""
    reads_more_on_request: bool = False
    """Whether ``LoadOptions.max_tokens`` may also raise ``max_tokens``, as far as there are positions."""
    template: Template | None = None
    towers: Towers | None = None
    """``None``: one transformer that reads token ids."""
    images: ImageRecipe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of turning checkpoints into encoders."""

    name: str
    summary: str
    matches: Callable[[Path, str], bool]
    """Whether the folder holds a checkpoint of this family; the second argument is what it is called."""
    read: Callable[[Path, LoadOptions], Recipe]
    """Reads the checkpoint's description; raises ``CheckpointError`` for what the family does not serve."""
