"""What can go wrong in the model room.

ModelError
├── CheckpointError          it cannot be found, fetched, or is not what it should be
├── InputError               the caller's input
│   ├── InputTooLongError
│   ├── TokenIdError
│   └── ImageError
│       ├── InvalidImageError    no image, or a broken one
│       ├── ImageTooLargeError   more pixels than are decoded
│       ├── ImageSideError       a side is too short or too long
│       ├── ImageAspectError     too long for how narrow it is
│       ├── ImageScansError      a JPEG that paints the same picture too often
│       ├── ImageMemoryError     more memory than one decode is given
│       ├── ImageTimeoutError    more time than one decode is given
│       └── DecodeFailedError    the process died over it, twice, or we made a mistake
├── DecoderUnavailableError  no process that decodes images
└── WorkerError
    ├── WorkerDiedError      the process is gone; the pass may be tried again elsewhere
    │   ├── PassNotBegunError    the process had not come to the pass, which is not to blame
    │   └── PassTimeoutError     no answer in time; the worker was killed
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

    def __init__(self, *, num_tokens: int, max_tokens: int, is_requested: bool = False) -> None:
        """Say it as OpenAI does, where it is the model's limit.

        Args:
            num_tokens: What the input has.
            max_tokens: What it may have.
            is_requested: The request set that limit itself, below the model's.
        """
        super().__init__(
            f"The request allows {max_tokens} tokens for each input, and this one has {num_tokens}."
            if is_requested
            else f"This model's maximum context length is {max_tokens} tokens, however you requested "
            f"{num_tokens} tokens."
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        self.is_requested = is_requested


class TokenIdError(InputError):
    """A token id is not in the vocabulary."""

    def __init__(self, token_id: int, vocab_size: int) -> None:
        super().__init__(f"token id {token_id} is not in the vocabulary of {vocab_size} ids")
        self.token_id = token_id
        self.vocab_size = vocab_size


class ImageError(InputError):
    """The image cannot be embedded. Its text names numbers, never what a decoding library said."""


class InvalidImageError(ImageError):
    """The file is no image, is broken, or is of a format or pixel type that is not read."""

    def __init__(self, *, fault: str = "") -> None:
        super().__init__(
            "the image cannot be read: it has to be a whole, undamaged JPEG, PNG, WebP or GIF file"
        )
        self.fault = fault
        """Type of the exception behind it, for a log."""


class ImageTooLargeError(ImageError):
    """The picture has more pixels than are decoded."""

    def __init__(self, *, max_pixels: int, num_pixels: int | None = None, kind: str = "image") -> None:
        has = "more" if num_pixels is None else f"{num_pixels:,} pixels, more"
        super().__init__(f"the {kind} has {has} than the {max_pixels:,} pixels that are allowed")
        self.max_pixels = max_pixels
        self.num_pixels = num_pixels
        """``None`` where the decoder stopped before it told."""
        self.kind = kind
        """What the limit holds for, as some kinds of file take more memory for a pixel than others."""


class ImageSideError(ImageError):
    """The picture is too wide, too high, too narrow or too low."""

    def __init__(self, *, width: int, height: int, min_side: int, max_side: int) -> None:
        super().__init__(
            f"the image is {width:,} x {height:,} pixels; "
            f"each side must have at least {min_side:,} and at most {max_side:,}"
        )
        self.width = width
        self.height = height
        self.min_side = min_side
        self.max_side = max_side


class ImageAspectError(ImageError):
    """The picture is too long for how narrow it is."""

    def __init__(self, *, width: int, height: int, max_aspect_ratio: float) -> None:
        super().__init__(
            f"the image is {width:,} x {height:,} pixels; "
            f"the long side must be at most {max_aspect_ratio:g} times the short one"
        )
        self.width = width
        self.height = height
        self.max_aspect_ratio = max_aspect_ratio


class ImageScansError(ImageError):
    """The JPEG comes in more scans than are decoded; each takes as long as a picture."""

    def __init__(self, *, max_scans: int) -> None:
        super().__init__(f"the JPEG has more than the {max_scans:,} scans that are allowed")
        self.max_scans = max_scans


class ImageMemoryError(ImageError):
    """The decode wanted more memory than one image is given."""

    def __init__(self, *, memory_bytes: int) -> None:
        super().__init__(f"decoding the image takes more than {memory_bytes // 1_000_000:,} MB of memory")
        self.memory_bytes = memory_bytes


class ImageTimeoutError(ImageError):
    """The decode took too long, and its process was killed."""

    def __init__(self, *, timeout_s: float) -> None:
        super().__init__(f"decoding the image takes more than {timeout_s:g} s")
        self.timeout_s = timeout_s


class DecodeFailedError(ImageError):
    """The decode went wrong in a way that is not the file's fault, or the file kills what decodes it."""

    def __init__(self, *, num_attempts: int = 1) -> None:
        attempts = "" if num_attempts == 1 else f" in {num_attempts} attempts"
        super().__init__(f"the image could not be decoded{attempts}")
        self.num_attempts = num_attempts


class DecoderUnavailableError(ModelError):
    """No decode process can be had: the decoder is closed, or its processes cannot be started."""


class WorkerError(ModelError):
    """A pass did not come back with rows."""

    def __init__(self, message: str, *, pid: int | None = None, pass_id: int | None = None) -> None:
        """Say what happened, and by which numbers a log tells of it.

        Args:
            message: What happened.
            pid: The process that had the pass. ``None``: it was with none.
            pass_id: The worker's number for the pass. ``None``: it has none, or it may as well have been
                another one.
        """
        super().__init__(message)
        self.pid = pid
        self.pass_id = pass_id


class WorkerDiedError(WorkerError):
    """The worker process ended under the pass, by a signal, a crash or the kernel's memory killer."""


class PassNotBegunError(WorkerDiedError):
    """The worker process is gone and had certainly not begun the pass, which is not to blame."""


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
