"""What a family of models is: how to recognise its checkpoints, and how to read one into a recipe.

A family is one small file beside this one. A checkpoint is data: its files, read into a ``Recipe``, say
everything that turns token ids into a vector; loading, packing, pooling and the gates are shared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.pooling import Pooling


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
    lowercase: bool
    """Texts are lower-cased before tokenising, whatever the tokenizer does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One way of turning checkpoints into encoders."""

    name: str
    summary: str
    matches: Callable[[Path], bool]
    """Whether the folder holds a checkpoint of this family."""
    read: Callable[[Path], Recipe]
    """Reads the checkpoint's description; raises ``CheckpointError`` for what the family does not serve."""
