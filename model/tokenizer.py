"""A checkpoint's tokenizer, and what of a family's template it turns into token ids."""

from collections.abc import Mapping
from typing import Any

from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import AutoTokenizer

from model.errors import CheckpointError
from model.families.family import ImageRecipe, Recipe, Template
from model.gate import first_line
from model.types import ImageInputs, ImageTokens, PromptTemplate


def load_tokenizer(recipe: Recipe) -> Any:
    """Load the tokenizer.

    Raises:
        CheckpointError: There is none, or not one that ``tokenizers`` can run.
    """
    folder = recipe.transformer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"the tokenizer in {folder} has no tokenizer.json and cannot be converted to one"
        )
    return tokenizer


def tokenizer_json(tokenizer: Any, *, lowercase: bool) -> str:
    """The whole tokenizer, in the format of ``tokenizers``."""
    backend = tokenizer.backend_tokenizer
    if lowercase and "Lowercase" not in repr(backend.normalizer):
        backend.normalizer = NormalizerSequence(
            [Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        )
    return backend.to_str()


def prompt_template(template: Template, tokenizer: Any) -> PromptTemplate:
    """The template with its special tokens by id.

    Raises:
        CheckpointError: The tokenizer does not know one of them, or takes it for a word.
    """
    special_ids = _special_ids(tokenizer)
    return PromptTemplate(
        pieces=tuple(
            _special_id(piece, special_ids) if piece.startswith("<|") else piece for piece in template.pieces
        ),
        default_instruction=template.default_instruction,
        instructs_documents=template.instructs_documents,
    )


def image_inputs(recipe: ImageRecipe, tokenizer: Any) -> ImageInputs:
    """What of images the model reads, with their tokens by id.

    Raises:
        CheckpointError: The tokenizer does not know one of them, or takes it for a word.
    """
    special_ids = _special_ids(tokenizer)
    return ImageInputs(
        spec=recipe.spec,
        tokens=ImageTokens(
            start=(_special_id(recipe.start_token, special_ids),),
            pad=_special_id(recipe.pad_token, special_ids),
            end=(_special_id(recipe.end_token, special_ids),),
        ),
        max_images=recipe.max_images,
        is_fused_with_text=recipe.is_fused_with_text,
    )


def _special_ids(tokenizer: Any) -> dict[str, int | None]:
    """Ids of the added tokens; ``None`` where a token is not marked special.

    Of the very tokenizer that the gateway will run: only what is marked there is kept out of clients' texts.
    """
    added_tokens = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {token.content: id_ if token.special else None for id_, token in added_tokens.items()}


def _special_id(token: str, special_ids: Mapping[str, int | None]) -> int:
    if token not in special_ids:
        raise CheckpointError(f"the tokenizer has no token {token}, which the model's prompt needs")
    special_id = special_ids[token]
    if special_id is None:
        raise CheckpointError(
            f"the tokenizer does not mark {token} as special, so that any text could hold one; set its "
            '"special" to true in tokenizer.json and tokenizer_config.json'
        )
    return special_id
