"""What travels through the model room: an input, its features, a pass's rows, and what a loaded model is."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from model.images.spec import DecodedImage, ImageSpec


class Truncation(StrEnum):
    """What happens to a text of more tokens than the model reads."""

    NONE = "none"
    """Refuse it."""
    START = "start"
    """Drop tokens at its start."""
    END = "end"
    """Drop tokens at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingInput:
    """One thing to embed, after every question about the client's spelling of it has been settled."""

    text: str | None = None
    images: tuple[DecodedImage, ...] = ()
    """For models that read them. With a text they make one vector together."""
    token_ids: tuple[int, ...] | None = None
    """Ids of the model's own vocabulary, taken as they are: no prompt, no special tokens added."""
    prompt_name: str | None = None
    """Which of the model's prompts to put in front ("query", "document", ...). ``None``: its default."""
    instruction: str | None = None
    """Takes the prompt's place where given."""
    truncation: Truncation = Truncation.END
    max_tokens: int | None = None
    """Reads at most so many tokens, the model's own limit permitting. ``None``: the model's limit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """One input as the encoder takes it."""

    token_ids: npt.NDArray[np.int32]
    """``[L]``, special tokens included, at most the model's limit."""
    images: tuple[npt.NDArray[np.uint8], ...] = ()
    """Each ``[H, W, 3]``, RGB, at the size that the model reads; in the order of their tokens."""
    num_image_tokens: int = 0
    """How many of the tokens stand for images."""
    num_prompt_tokens: int = 0
    """Leading tokens that pooling leaves out; 0 unless the model's pooling excludes its prompt."""
    num_dropped_tokens: int = 0
    """Tokens that truncation took away."""

    @property
    def num_tokens(self) -> int:
        """Tokens the model computes for this input."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassResult:
    """What one pass gave."""

    rows: npt.NDArray[np.float32]
    """``[B, D]``, in the order of the features; normalised where the model normalises."""
    device_s: float
    """Time the device spent on this pass, measured in the worker; interruptions are not counted."""
    nonfinite_rows: tuple[int, ...] = ()
    """Rows that hold NaN or infinity: errors, never to be sent."""
    num_interruptions: int = 0
    """Urgent passes that ran between two blocks of this one."""
    interrupted_s: float = 0.0
    """What they took together."""
    num_padding_tokens: int = 0
    """Tokens that were computed beside those of the features; 0 in a packed pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokens:
    """How an image stands among token ids: ``start``, ``pad`` as many times as it has tokens, ``end``."""

    start: tuple[int, ...]
    pad: int
    end: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """The fixed row of tokens around an input, for models that were trained with one."""

    pieces: tuple[int | str, ...]
    """Special tokens by id, and between them texts with the slots ``{instruction}``, ``{images}`` and
    ``{text}``. Texts are tokenised as ordinary text, whatever looks like a special token in them."""
    default_instruction: str
    """Stands in the slot where a request gives no instruction."""
    instructs_documents: bool
    """Whether an instruction counts for the document side, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInputs:
    """What of images a model reads."""

    spec: ImageSpec
    tokens: ImageTokens
    max_images: int
    """In one input."""
    is_fused_with_text: bool
    """Whether an image and a text make one vector together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A loaded model, as the rest of the program may know it. Plain data: it crosses the process border."""

    source: str
    """What the checkpoint is called: a hub id, or its folder's name."""
    family: str
    architecture: str
    """The transformers class, such as ``BertModel``."""
    dimension: int
    """D: numbers in a vector."""
    max_tokens: int
    """Tokens one input may have, special tokens included."""
    vocab_size: int
    num_parameters: int
    dtype: str
    device: str
    pooling: str
    is_normalized: bool
    is_packed: bool
    """Passes run without padding. ``False``: length-bucketed padding; ``packing_note`` says why."""
    packing_note: str
    prompts: dict[str, str]
    """Prompt texts by name, as the checkpoint gives them."""
    default_prompt_name: str | None
    include_prompt: bool
    """Whether the prompt's tokens take part in the pooling."""
    matryoshka_dimensions: tuple[int, ...]
    """Shorter sizes the model was trained for, largest first. Empty: only the native size."""
    tokenizer_json: str = field(repr=False)
    """The whole tokenizer, in the format of ``tokenizers``."""
    fingerprint: str
    """sha256 over everything that changes a vector. Equal fingerprints: vectors may be compared."""
    license: str | None = None
    note: str | None = None
    """What whoever uses the vectors has to know."""
    template: PromptTemplate | None = None
    """``None``: a prompt is put before the text, and the tokenizer adds its special tokens."""
    images: ImageInputs | None = None
    """``None``: the model reads texts only."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """What an input may hold."""
        return ("text",) if self.images is None else ("text", "image")
