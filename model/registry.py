"""Which family serves a checkpoint. The first match wins, so the particular come before the generic."""

from pathlib import Path

from model.errors import CheckpointError
from model.families import gme, sentence_transformers
from model.families.family import Family

FAMILIES: tuple[Family, ...] = (gme.FAMILY, sentence_transformers.FAMILY)


def find_family(folder: Path, *, source: str, name: str | None) -> Family:
    """The family that serves the checkpoint in this folder.

    Args:
        folder: Holds the checkpoint.
        source: What the checkpoint is called.
        name: The family to take, whatever the checkpoint looks like. ``None``: the first that matches.

    Raises:
        CheckpointError: None does, or there is none of that name.
    """
    for family in FAMILIES:
        if family.name == name or (name is None and family.matches(folder, source)):
            return family
    known = "; ".join(f"{family.name} ({family.summary})" for family in FAMILIES)
    if name is not None:
        raise CheckpointError(f"there is no family of models {name!r}; known are: {known}")
    raise CheckpointError(f"no known family of models matches {folder}; known are: {known}")
