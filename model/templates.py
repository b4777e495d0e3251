"""Rows of token ids for models with a prompt template: special tokens by id, all else as ordinary text.

Law of this file: a text is tokenised together with the literal text around it up to the next special token,
and never with anything beyond. So merges at its border are those of the whole prompt, and nothing that a
client writes becomes a special token, or makes one disappear.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tokenizers import Tokenizer

from model.errors import InputError, InputTooLongError
from model.types import ImageTokens, PromptTemplate, Truncation

_SLOT = re.compile(r"(\{(?:instruction|images|text)\})")
_INSTRUCTION, _IMAGES, _TEXT = "{instruction}", "{images}", "{text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An input as the model reads it."""

    token_ids: list[int]
    num_dropped_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """What goes into the slots of a template for one input."""

    instruction: str
    text: str | None
    num_image_tokens: Sequence[int]
    """Of each image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """Text between two special tokens or images, tokenised as one."""

    head: str
    """Literal text and the instruction."""
    text: str = ""
    """The client's, behind ``head``. It is the one part that may be cut."""
    tail: str = ""


class TemplateTokenizer:
    """Fills one template. Safe to use from several threads: nothing changes after construction."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, images: ImageTokens | None) -> None:
        """Take over the tokenizer.

        Args:
            tokenizer: Encodes what looks like a special token as ordinary text from now on.
            template: The model's.
            images: How an image stands in the row, for a template with a slot for images.
        """
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._images = images
        self._pieces = [piece for whole in template.pieces for piece in _split(whole)]

    def rows(
        self, fillings: Sequence[Filling], *, limits: Sequence[int], truncations: Sequence[Truncation]
    ) -> list[Row | InputError]:
        """Make the rows of several inputs; texts that are too long are cut, or refused one by one.

        Args:
            fillings: What each row holds.
            limits: The most tokens each may have.
            truncations: Where each is cut. Template, instruction and images always stay whole.
        """
        layouts = [self._layout(filling) for filling in fillings]
        texts = {
            segment.head + segment.text + segment.tail: None
            for layout in layouts
            for segment in layout
            if isinstance(segment, _Segment)
        }
        # As a batch, also a single one: ``Tokenizer.encode`` holds the interpreter lock (tokenizers 0.23).
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids_of = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        rows: list[Row | InputError] = []
        for filling, layout, limit, truncation in zip(fillings, layouts, limits, truncations, strict=True):
            try:
                row = self._row(layout, ids_of, limit, truncation)
                self._check_image_tokens(row, filling)
                rows.append(row)
            except InputError as error:
                rows.append(error)
        return rows

    def _layout(self, filling: Filling) -> list[list[int] | _Segment]:
        """Token ids and segments in turn."""
        parts: list[int | str | _Segment] = []
        for piece in self._pieces:
            match piece:
                case "{instruction}":
                    parts.append(filling.instruction)
                case "{text}":
                    parts.append(_Segment(head="", text=filling.text or ""))
                case "{images}":
                    parts += self._image_ids(filling.num_image_tokens)
                case _:
                    parts.append(piece)
        layout: list[list[int] | _Segment] = []
        for is_ids, group in groupby(parts, key=lambda part: isinstance(part, int)):
            if is_ids:
                layout.append([part for part in group if isinstance(part, int)])
            else:
                layout.append(_joined([part for part in group if not isinstance(part, int)]))
        return layout

    def _image_ids(self, num_image_tokens: Sequence[int]) -> list[int]:
        if not num_image_tokens:
            return []
        assert self._images is not None, "only a model that reads images is handed some"
        ids: list[int] = []
        for num_tokens in num_image_tokens:
            ids += [*self._images.start, *[self._images.pad] * num_tokens, *self._images.end]
        return ids

    def _check_image_tokens(self, row: Row, filling: Filling) -> None:
        """Refuse a row with more or fewer places for images than images: on CUDA it would end the process."""
        if self._images is None:
            return
        num_places, num_needed = row.token_ids.count(self._images.pad), sum(filling.num_image_tokens)
        if num_places != num_needed:
            raise InputError(
                f"the input has {num_places} tokens that stand for images, and its images have {num_needed}"
            )

    def _row(
        self,
        layout: Sequence[list[int] | _Segment],
        ids_of: Mapping[str, list[int]],
        limit: int,
        truncation: Truncation,
    ) -> Row:
        parts = [
            ids_of[part.head + part.text + part.tail] if isinstance(part, _Segment) else part
            for part in layout
        ]
        num_tokens = sum(map(len, parts))
        num_excess = num_tokens - limit
        if num_excess > 0:
            if truncation is Truncation.NONE:
                raise InputTooLongError(num_tokens=num_tokens, max_tokens=limit)
            index = next(
                (i for i, part in enumerate(layout) if isinstance(part, _Segment) and part.text), None
            )
            if index is None:
                raise InputTooLongError(num_tokens=num_tokens, max_tokens=limit)
            segment = layout[index]
            assert isinstance(segment, _Segment)
            shortened = self._cut(segment, num_excess, truncation)
            if shortened is None:
                raise InputTooLongError(num_tokens=num_tokens, max_tokens=limit)
            parts[index] = shortened
        token_ids = [token_id for part in parts for token_id in part]
        return Row(token_ids=token_ids, num_dropped_tokens=num_tokens - len(token_ids))

    def _cut(self, segment: _Segment, num_excess: int, truncation: Truncation) -> list[int] | None:
        """The ids of a segment without ``num_excess`` tokens of its text, or ``None`` if it has too few."""
        whole = segment.head + segment.text + segment.tail
        # Once more, with the characters that each token stands for.
        [encoding] = self._tokenizer.encode_batch([whole], add_special_tokens=False)
        start, stop = len(segment.head), len(whole) - len(segment.tail)
        # A token that a literal and the text share stays with the literal.
        first = sum(begin < start for begin, _ in encoding.offsets)
        last = sum(end <= stop for _, end in encoding.offsets)
        ids = encoding.ids
        if last - first <= num_excess:
            return None
        if truncation is Truncation.START:
            return ids[:first] + ids[first + num_excess :]
        return ids[: last - num_excess] + ids[last:]


def _split(piece: int | str) -> list[int | str]:
    return [piece] if isinstance(piece, int) else [part for part in _SLOT.split(piece) if part]


def _joined(parts: Sequence[str | _Segment]) -> _Segment:
    """One segment of neighbouring texts, of which at most one is the client's."""
    head, text, tail = "", None, ""
    for part in parts:
        if isinstance(part, _Segment):
            text = part.text
        elif text is None:
            head += part
        else:
            tail += part
    return _Segment(head=head, text=text or "", tail=tail)
