"""Whether an input is a query, a document or neither, and which of the model's prompts that means.

Every vendor has names of its own for the two sides of a search. They are understood here, once, and mapped
onto the names that the served checkpoint uses; any other name must be one of the checkpoint's prompts.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

from app.errors import InvalidRequestError, quoted
from model import CheckpointError, ModelInfo


class Side(StrEnum):
    """The two sides of a search."""

    QUERY = "query"
    DOCUMENT = "document"


SIDES: Mapping[str, Side] = {
    "query": Side.QUERY,
    "search_query": Side.QUERY,  # Cohere, Nomic
    "retrieval.query": Side.QUERY,  # Jina
    "retrieval_query": Side.QUERY,  # Gemini
    "document": Side.DOCUMENT,
    "passage": Side.DOCUMENT,  # NVIDIA NIM, E5
    "search_document": Side.DOCUMENT,
    "retrieval.passage": Side.DOCUMENT,
    "retrieval_document": Side.DOCUMENT,
    "corpus": Side.DOCUMENT,  # sentence-transformers' encode_document
}

NEUTRAL = "text"
"""Azure's word for an input that is on neither side: the model's default prompt."""


def side_of(name: str) -> Side | None:
    """The side a name stands for, if it stands for one."""
    return SIDES.get(name.strip().lower())


def choose_prompt(name: str, *, prompts: Mapping[str, str], param: str) -> str | None:
    """Map a client's name for a kind of input to the name of one of the model's prompts.

    Returns:
        A name for ``EmbeddingInput.prompt_name``; ``query`` and ``document`` always work there, and mean no
        prompt where the model has none. ``None`` is the model's default.

    Raises:
        InvalidRequestError: The name is no side and no prompt; the message lists what is allowed.
    """
    if name in prompts:
        return name
    side = side_of(name)
    if side is not None:
        if side in prompts:
            return str(side)
        return next((prompt for prompt in prompts if side_of(prompt) is side), str(side))
    if name.strip().lower() == NEUTRAL:
        return None
    allowed = ", ".join(allowed_names(prompts))
    raise InvalidRequestError(
        f"{quoted(name)} is not an input type of this model. Allowed: {allowed}.",
        param=param,
        code="invalid_input_type",
    )


def allowed_names(prompts: Mapping[str, str]) -> Sequence[str]:
    """Every name that is understood: both sides and the model's prompts, then the other words for a side."""
    return list(dict.fromkeys((*Side, *sorted(prompts), *SIDES, NEUTRAL)))


MODEL_SUFFIXES = ("query", "passage", "document")
"""``MODEL-query`` asks for the model with that input type: for clients that can set nothing but a model."""


def split_model_name(name: str, known: Sequence[str]) -> tuple[str, str | None]:
    """Split ``NAME-query`` into name and input type, unless a model has exactly that name."""
    if name in known:
        return name, None
    stem, dash, suffix = name.rpartition("-")
    return (stem, suffix) if dash and stem in known and suffix in MODEL_SUFFIXES else (name, None)


def check_default_input_type(name: str | None, info: ModelInfo) -> None:
    """Refuse at start what would otherwise refuse every request.

    Raises:
        CheckpointError: The setting ``default_input_type`` means nothing to the loaded model.
    """
    if name is None:
        return
    try:
        choose_prompt(name, prompts=info.prompts, param="default_input_type")
    except InvalidRequestError as error:
        raise CheckpointError(f"default_input_type: {error.message}") from error
