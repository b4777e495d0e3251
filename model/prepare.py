"""From an input to the token ids that the encoder takes. Runs in the gateway: no torch here.

The tokenizer comes with ``ModelInfo``, from the worker that loaded the checkpoint, so both sides hold the
very same one. Instances are safe to use from several threads: nothing of the tokenizer is changed after
construction.

Law of this file: texts are encoded as batches, also single ones. ``Tokenizer.encode`` holds the interpreter
lock (tokenizers 0.23), and a long text would stop the whole gateway.
"""

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding, Tokenizer

from model.errors import InputError, InputTooLongError, TokenIdError
from model.prompts import DOCUMENT_NAMES, resolve_prompt
from model.templates import Filling, TemplateTokenizer
from model.types import EmbeddingInput, Features, ModelInfo, Truncation


class Preparer:
    """Makes features for one model."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self._tokenizer = Tokenizer.from_str(info.tokenizer_json)
        # Checkpoints often store how their training cut and padded; we do both ourselves.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._num_special_tokens = self._tokenizer.num_special_tokens_to_add(False)
        self._prompt_lengths: dict[str, int] = {}
        self._template: TemplateTokenizer | None = None
        if info.template is not None:
            image_tokens = None if info.images is None else info.images.tokens
            self._template = TemplateTokenizer(self._tokenizer, info.template, image_tokens)

    def prepare(self, inputs: Sequence[EmbeddingInput]) -> list[Features | InputError]:
        """Make features, or an error, for each input.

        Returns:
            One element an input, in order. An ``InputError`` says why that input cannot be embedded;
            its neighbours are not concerned.
        """
        make_features = self._with_prompt if self._template is None else self._with_template
        others = iter(make_features([one for one in inputs if one.token_ids is None]))
        made = [next(others) if one.token_ids is None else self._with_token_ids(one) for one in inputs]
        return [self._owned(one) if isinstance(one, InputTooLongError) else one for one in made]

    def _owned(self, error: InputTooLongError) -> InputTooLongError:
        """The same refusal, which says whose limit it was."""
        return InputTooLongError(
            num_tokens=error.num_tokens,
            max_tokens=error.max_tokens,
            is_requested=error.max_tokens < self._info.max_tokens,
        )

    def _with_template(self, inputs: Sequence[EmbeddingInput]) -> list[Features | InputError]:
        """Put texts and images into the model's template."""
        assert self._template is not None
        rows = self._template.rows(
            [
                Filling(
                    instruction=self._instruction(one),
                    text=one.text,
                    num_image_tokens=[image.num_tokens for image in one.images],
                )
                for one in inputs
            ],
            limits=[self._limit(one) for one in inputs],
            truncations=[one.truncation for one in inputs],
        )
        return [
            row
            if isinstance(row, InputError)
            else Features(
                token_ids=np.array(row.token_ids, dtype=np.int32),
                images=tuple(image.pixels for image in one.images),
                num_image_tokens=sum(image.num_tokens for image in one.images),
                num_dropped_tokens=row.num_dropped_tokens,
            )
            for row, one in zip(rows, inputs, strict=True)
        ]

    def _instruction(self, one: EmbeddingInput) -> str:
        template = self._info.template
        assert template is not None
        is_for_it = template.instructs_documents or one.prompt_name not in DOCUMENT_NAMES
        return (one.instruction if is_for_it else None) or template.default_instruction

    def _with_prompt(self, inputs: Sequence[EmbeddingInput]) -> list[Features | InputError]:
        """Put each text behind its prompt."""
        # Special tokens come last, around what truncation leaves: cut afterwards, they would be cut too.
        texts = [self._prompt(one) + (one.text or "") for one in inputs]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        prepared: list[Features | InputError] = []
        for one, encoding in zip(inputs, encodings, strict=True):
            try:
                prepared.append(self._text_features(one, encoding))
            except InputError as error:
                prepared.append(error)
        return prepared

    def _with_token_ids(self, one: EmbeddingInput) -> Features | InputError:
        try:
            return self._token_features(one)
        except InputError as error:
            return error

    def _prompt(self, one: EmbeddingInput) -> str:
        return resolve_prompt(
            self._info.prompts,
            default_name=self._info.default_prompt_name,
            prompt_name=one.prompt_name,
            instruction=one.instruction,
        )

    def _limit(self, one: EmbeddingInput) -> int:
        return self._info.max_tokens if one.max_tokens is None else min(one.max_tokens, self._info.max_tokens)

    def _text_features(self, one: EmbeddingInput, encoding: Encoding) -> Features:
        limit, num_tokens = self._limit(one), len(encoding) + self._num_special_tokens
        if num_tokens == 0:
            raise InputError("the text has no tokens")
        if num_tokens > limit:
            if one.truncation is Truncation.NONE or limit <= self._num_special_tokens:
                raise InputTooLongError(num_tokens=num_tokens, max_tokens=limit)
            encoding = self._truncated(one, encoding, limit - self._num_special_tokens)
        token_ids = np.array(self._tokenizer.post_process(encoding).ids, dtype=np.int32)
        return Features(
            token_ids=token_ids,
            num_prompt_tokens=0 if self._info.include_prompt else self._prompt_length(self._prompt(one)),
            num_dropped_tokens=num_tokens - len(token_ids),
        )

    def _truncated(self, one: EmbeddingInput, encoding: Encoding, num_kept: int) -> Encoding:
        """Cut the tokens of prompt and text. Cut at its start, a text keeps its prompt."""
        if one.truncation is Truncation.END:
            encoding.truncate(num_kept)
            return encoding
        prompt = self._prompt(one)
        if not prompt:
            encoding.truncate(num_kept, direction="left")
            return encoding
        # Encoded once more, with the characters that each token stands for.
        [head] = self._tokenizer.encode_batch([prompt + (one.text or "")], add_special_tokens=False)
        num_prompt = sum(stop <= len(prompt) for _, stop in head.offsets)
        if num_prompt >= num_kept:
            num_prompt = 0
        head.truncate(num_prompt)
        encoding.truncate(num_kept - num_prompt, direction="left")
        return Encoding.merge([head, encoding], growing_offsets=False)

    def _prompt_length(self, prompt: str) -> int:
        """Tokens of the prompt with the special tokens before it, as sentence-transformers counts them."""
        if not prompt:
            return 0
        if prompt not in self._prompt_lengths:
            [encoding] = self._tokenizer.encode_batch([prompt], add_special_tokens=True)
            ends_special = bool(encoding.special_tokens_mask and encoding.special_tokens_mask[-1])
            if len(self._prompt_lengths) >= 1024:
                # Instructions come from clients: the memory of their lengths must not grow with them.
                self._prompt_lengths.clear()
            self._prompt_lengths[prompt] = len(encoding) - ends_special
        return self._prompt_lengths[prompt]

    def _token_features(self, one: EmbeddingInput) -> Features:
        assert one.token_ids is not None
        token_ids = one.token_ids
        for token_id in token_ids:
            # An id past the embedding table would be a device-side assert, which kills a CUDA context.
            if not 0 <= token_id < self._info.vocab_size:
                raise TokenIdError(token_id, self._info.vocab_size)
        if self._info.images is not None and self._info.images.tokens.pad in token_ids:
            raise InputError(f"token {self._info.images.tokens.pad} stands for an image, and there is none")
        limit = self._limit(one)
        if not token_ids:
            raise InputError("the token array is empty")
        if len(token_ids) > limit:
            match one.truncation:
                case Truncation.NONE:
                    raise InputTooLongError(num_tokens=len(token_ids), max_tokens=limit)
                case Truncation.START:
                    token_ids = token_ids[-limit:]
                case Truncation.END:
                    token_ids = token_ids[:limit]
        return Features(
            token_ids=np.array(token_ids, dtype=np.int32),
            num_dropped_tokens=len(one.token_ids) - len(token_ids),
        )
