"""Which family serves a checkpoint. The first match wins, so the particular come before the generic."""

from pathlib import Path

from model.errors import CheckpointError
from model.families import sentence_transformers
from model.families.family import Family

FAMILIES: tuple[Family, ...] = (sentence_transformers.FAMILY,)


def find_family(folder: Path) -> Family:
    """The family that serves the checkpoint in this folder.

    Raises:
        CheckpointError: None does.
    """
    for family in FAMILIES:
        if family.matches(folder):
            return family
    known = "; ".join(f"{family.name} ({family.summary})" for family in FAMILIES)
    raise CheckpointError(f"no known family of models matches {folder}; known are: {known}")
