"""Which text goes in front of an input: a named prompt of the checkpoint, or the caller's own instruction."""

from collections.abc import Mapping

DOCUMENT_NAMES = ("document", "passage", "corpus")
"""Names under which checkpoints keep their document prompt; each of them means the first that is not empty.
(sentence-transformers would stop at an empty one.)"""

QUERY_NAME = "query"


def resolve_prompt(
    prompts: Mapping[str, str], *, default_name: str | None, prompt_name: str | None, instruction: str | None
) -> str:
    """The text to put in front of an input, "" for none.

    An instruction wins over a name. ``query`` and ``document`` always exist: a model that has no prompt for
    them takes the text as it is, and never falls back to its default prompt, so that the two sides of a
    search are what their names say. Any other name must be one of the model's.

    Raises:
        KeyError: The model has no prompt of that name.
    """
    if instruction is not None:
        return instruction
    name = prompt_name if prompt_name is not None else default_name
    if name is None:
        return ""
    if name in DOCUMENT_NAMES:
        return next((prompts[known] for known in (name, *DOCUMENT_NAMES) if prompts.get(known)), "")
    if name == QUERY_NAME:
        return prompts.get(QUERY_NAME, "")
    return prompts[name]
