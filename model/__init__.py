"""Turns inputs into vectors. Knows nothing of HTTP or of lanes.

What is exported here needs no torch: it is what the gateway process uses. The encoder itself
(``model.loading``) is imported by worker processes alone.
"""

from model.checkpoint import Checkpoint, find_card, find_checkpoint, names_of
from model.errors import (
    CheckpointError,
    DecodeFailedError,
    DecoderUnavailableError,
    ImageError,
    ImageMemoryError,
    ImageTimeoutError,
    ImageTooLargeError,
    InputError,
    InputTooLongError,
    InvalidImageError,
    ModelError,
    NonFiniteRowError,
    PassFailedError,
    PassNotBegunError,
    PassOutOfMemoryError,
    PassTimeoutError,
    TokenIdError,
    WorkerDiedError,
    WorkerError,
)
from model.images.spec import DecodedImage, ImageSpec
from model.prepare import Preparer
from model.prompts import DOCUMENT_NAMES, QUERY_NAME, resolve_prompt
from model.types import (
    EmbeddingInput,
    Features,
    ImageInputs,
    ImageTokens,
    ModelInfo,
    PassResult,
    PromptTemplate,
    Truncation,
)

__all__ = [
    "DOCUMENT_NAMES",
    "QUERY_NAME",
    "Checkpoint",
    "CheckpointError",
    "DecodeFailedError",
    "DecodedImage",
    "DecoderUnavailableError",
    "EmbeddingInput",
    "Features",
    "ImageError",
    "ImageInputs",
    "ImageMemoryError",
    "ImageSpec",
    "ImageTimeoutError",
    "ImageTokens",
    "ImageTooLargeError",
    "InputError",
    "InputTooLongError",
    "InvalidImageError",
    "ModelError",
    "ModelInfo",
    "NonFiniteRowError",
    "PassFailedError",
    "PassNotBegunError",
    "PassOutOfMemoryError",
    "PassResult",
    "PassTimeoutError",
    "Preparer",
    "PromptTemplate",
    "TokenIdError",
    "Truncation",
    "WorkerDiedError",
    "WorkerError",
    "find_card",
    "find_checkpoint",
    "names_of",
    "resolve_prompt",
]
