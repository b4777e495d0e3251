"""What a request says of all its inputs: which prompt they get, and what happens to those that are too long.

Law: which prompt an input gets is only ever what was said, never what its batch looks like.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.elements import Said
from app.errors import InvalidRequestError, quoted
from app.prompts import choose_prompt, side_of
from app.settings import Settings
from app.wire import CreateEmbeddingRequest
from model import ModelInfo, Truncation

MAX_INSTRUCTION_CHARS = 8_000
"""An instruction is a sentence or two, and stands before every input: its cost is multiplied by theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds for every input that says nothing itself; fields as in ``EmbeddingInput``."""

    prompt_name: str | None
    instruction: str | None
    truncation: Truncation
    max_tokens: int | None
    prompting_param: str | None
    """Where the request itself asked for a text before its inputs; ``None`` if nowhere."""


def read_input_type(
    request: CreateEmbeddingRequest, *, headers: Mapping[str, str], model_input_type: str | None
) -> Said | None:
    """What the request says of all its inputs: in the body, else in a header, else in the model's name.

    Raises:
        InvalidRequestError: The body says two things at once.
    """
    spoken = {
        "input_type": request.input_type,
        "task": request.task,
        "prompt_name": request.prompt_name,
    }
    said = {param: name for param, name in spoken.items() if name is not None}
    kinds = {side_of(name) or name for name in said.values()}
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"{' and '.join(map(repr, said))} contradict each other; send one of them.", param=list(said)[1]
        )
    if said:
        param, name = next(iter(said.items()))
        return Said(text=name, param=param)
    if header := headers.get("x-input-type"):
        return Said(text=header, param="X-Input-Type")
    if model_input_type is not None:
        return Said(text=model_input_type, param="model")
    return None


def read_defaults(
    request: CreateEmbeddingRequest, *, input_type: Said | None, info: ModelInfo, settings: Settings
) -> Defaults:
    """Read what holds for all inputs; ``input_type`` is what ``read_input_type`` found.

    Raises:
        InvalidRequestError: Something is wrong; ``param`` says where.
    """
    if input_type is not None:
        prompt_name = choose_prompt(input_type.text, prompts=info.prompts, param=input_type.param)
    elif settings.model.default_input_type is not None:
        prompt_name = choose_prompt(
            settings.model.default_input_type, prompts=info.prompts, param="default_input_type"
        )
    else:
        prompt_name = None
    max_tokens = request.truncate_prompt_tokens
    if max_tokens is not None and max_tokens != -1 and max_tokens < 1:
        raise InvalidRequestError(
            f"'truncate_prompt_tokens' must be at least 1, or -1 for the model's limit, not {max_tokens}.",
            param="truncate_prompt_tokens",
        )
    instruction = request.instruction
    if instruction is not None:
        check_instruction(Said(text=instruction, param="instruction"))
    return Defaults(
        prompt_name=prompt_name,
        instruction=instruction,
        truncation=_truncation(request, default=Truncation(str(settings.model.truncate))),
        max_tokens=None if max_tokens in (None, -1) else min(max_tokens, info.max_tokens),
        prompting_param=_prompting_param(instruction, input_type, prompt=info.prompts.get(prompt_name or "")),
    )


def _prompting_param(instruction: str | None, input_type: Said | None, *, prompt: str | None) -> str | None:
    if instruction is not None:
        return "instruction" if instruction else None
    return input_type.param if input_type is not None and prompt else None


def check_instruction(said: Said) -> None:
    """Refuse an instruction that is no instruction any more.

    Raises:
        InvalidRequestError: It has more than ``MAX_INSTRUCTION_CHARS`` characters.
    """
    if len(said.text) > MAX_INSTRUCTION_CHARS:
        raise InvalidRequestError(
            f"'{said.param}' has {len(said.text)} characters; an instruction may have "
            f"{MAX_INSTRUCTION_CHARS}.",
            param=said.param,
        )


def _truncation(request: CreateEmbeddingRequest, *, default: Truncation) -> Truncation:
    """Read ``truncate`` (NONE, START, END, or a bool) or ``truncation`` (the same).

    ``truncate_prompt_tokens`` alone asks for a cut, too.
    """
    param, value = ("truncate", request.truncate)
    if value is None:
        param, value = ("truncation", request.truncation)
    if value is None:
        wants_cut = request.truncate_prompt_tokens is not None and default is Truncation.NONE
        return Truncation.END if wants_cut else default
    if isinstance(value, bool):
        if not value:
            return Truncation.NONE
        return Truncation.END if default is Truncation.NONE else default
    try:
        return Truncation(value.lower())
    except ValueError:
        allowed = ", ".join(one.upper() for one in Truncation)
        raise InvalidRequestError(
            f"{quoted(value)} is not a way to truncate. Allowed: {allowed}, true, false.", param=param
        ) from None
