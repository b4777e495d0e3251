"""What can go wrong in the model room.

ModelError
├── CheckpointError          it cannot be found, fetched, or is not what it should be
├── InputError               the caller's input
│   ├── InputTooLongError
│   └── TokenIdError
└── WorkerError
    ├── WorkerDiedError      the process is gone; the pass may be tried again elsewhere
    ├── PassTimeoutError     no answer in time; the worker was killed
    ├── PassFailedError      the encoder raised; the same pass would raise again
    │   └── PassOutOfMemoryError   no memory for the pass; a smaller one may fit
    └── NonFiniteRowError    the pass ran, but this input's vector holds NaN or infinity
"""


class ModelError(Exception):
    """Base of everything this room raises."""


class CheckpointError(ModelError):
    """The model cannot be had. The message is one line that says what is wrong and what to do."""


class InputError(ModelError):
    """The input cannot be embedded by this model."""


class InputTooLongError(InputError):
    """The input has more tokens than the model reads, and truncation was declined."""

    def __init__(self, *, num_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"This model's maximum context length is {max_tokens} tokens, however you requested "
            f"{num_tokens} tokens."
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class TokenIdError(InputError):
    """A token id is not in the vocabulary."""

    def __init__(self, token_id: int, vocab_size: int) -> None:
        super().__init__(f"token id {token_id} is not in the vocabulary of {vocab_size} ids")
        self.token_id = token_id
        self.vocab_size = vocab_size


class WorkerError(ModelError):
    """A pass did not come back with rows."""


class WorkerDiedError(WorkerError):
    """The worker process ended under the pass, by a signal, a crash or the kernel's memory killer."""


class PassTimeoutError(WorkerDiedError):
    """The worker did not answer in time and was killed."""


class PassFailedError(WorkerError):
    """The encoder raised an exception. Its text goes to the log, never to a client."""


class PassOutOfMemoryError(PassFailedError):
    """The device had no memory for the pass; a smaller one may fit."""


class NonFiniteRowError(WorkerError):
    """The model overflowed on this input; in float16 that can happen, in float32 it should not."""

    def __init__(self) -> None:
        super().__init__(
            "the vector holds NaN or infinity; serving with dtype float32 or bfloat16 avoids that"
        )
