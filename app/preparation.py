"""From inputs to features: what tokenises whom, and who is tokenised next.

Tokenising takes a core as a pass takes a device, so a batcher stands before it, too. Its passes are chunks of
one request, and its tokens are characters. Thus what holds in the lanes holds on the way to them: queries go
first, a lane that waits gets its share, tenants take turns, and whoever's deadline passes, or who goes away,
leaves the line. A chunk that has begun is finished: tokenising cannot be interrupted.

Short requests are prepared at once on the event loop, and queries that are not long have a thread of their
own. Neither ever waits for documents.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import cast

from batching import (
    Batcher,
    CostModel,
    DeadlineError,
    EntryFailedError,
    Lane,
    Limits,
    RunResult,
    ShuttingDownError,
    WorkItem,
)
from model import EmbeddingInput, Features, InputError, Preparer

# What preparing an input costs beside its text, in characters: 6 us, where 1,000 characters take 270 us
# (MiniLM's tokeniser, one core).
_INPUT_CHARS = 20
# And what an image's thousand tokens take.
_IMAGE_CHARS = 200
# What is expected of a character until the first chunks have been seen.
_CHAR_S = 2.7e-7
# Less than this is prepared on the event loop, which stands still for a quarter of a millisecond at most.
_INLINE_CHARS = 1_000
# Longer requests never use the queries' thread, whatever lane they are in.
_QUERY_CHARS = 20_000
# Most that one call tokenises: it cannot be interrupted, and other requests wait for it. 200,000 characters
# take 0.14 s. One longer input is a call of its own, bounded by the setting max_input_chars.
_CHUNK_INPUTS = 64
_CHUNK_CHARS = 200_000
# Chunks are passes as they were cut: nothing fits into one beside its only entry.
_CHUNK_S = 0.001


class InputRefusedError(Exception):
    """One input cannot be embedded; ``__cause__`` is the model room's ``InputError``."""

    def __init__(self, index: int, cause: InputError) -> None:
        super().__init__(str(cause))
        self.index = index
        self.__cause__ = cause


class RequestTooLargeError(Exception):
    """The inputs of a request have more tokens together than one request may have."""

    def __init__(self, *, num_tokens: int, max_tokens: int, is_at_least: bool = False) -> None:
        """Say how many tokens there are.

        Args:
            num_tokens: Tokens of the inputs, as far as they were counted.
            max_tokens: The limit.
            is_at_least: Not all inputs were counted; there are more tokens.
        """
        requested = f"at least {num_tokens}" if is_at_least else str(num_tokens)
        super().__init__(f"Requested {requested} tokens, max {max_tokens} tokens per request.")
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


@dataclass(slots=True, kw_only=True, eq=False)
class _Request:
    """The inputs of a request, and how far it is."""

    inputs: Sequence[EmbeddingInput]
    max_tokens: int
    num_prepared: int = 0
    num_tokens: int = 0
    """Of the prepared inputs, those included that truncation took."""

    def accept(self, indices: range, prepared: Sequence[Features | InputError]) -> list[Features]:
        """Take the next chunk, if nothing in it was refused and it is not too much.

        Raises:
            InputRefusedError: One input cannot be embedded.
            RequestTooLargeError: These and those before have too many tokens together.
        """
        features: list[Features] = []
        for index, one in zip(indices, prepared, strict=True):
            if isinstance(one, InputError):
                raise InputRefusedError(index, one)
            features.append(one)
        self.num_prepared += len(features)
        self.num_tokens += sum(one.num_tokens + one.num_dropped_tokens for one in features)
        if self.num_tokens > self.max_tokens:
            raise RequestTooLargeError(
                num_tokens=self.num_tokens,
                max_tokens=self.max_tokens,
                is_at_least=self.num_prepared < len(self.inputs),
            )
        return features


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Chunk:
    """What is tokenised at once."""

    request: _Request
    indices: range
    """Places of its inputs in the request."""

    @property
    def inputs(self) -> Sequence[EmbeddingInput]:
        return self.request.inputs[self.indices.start : self.indices.stop]


class Preparation:
    """Owns the tokeniser's threads, and the line before the one that is not for queries alone."""

    def __init__(
        self,
        preparer: Preparer,
        *,
        limits: Limits,
        max_request_tokens: int,
        name: str = "preparation",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Wire up what ``start`` starts.

        Args:
            preparer: Makes the features; called from several threads.
            limits: Those of the lanes: the same shares, and bounds on what waits.
            max_request_tokens: A request of more is refused at the chunk that is too much.
            name: Appears in logs.
            clock: Monotonic seconds, at the pace of the event loop's own clock.
        """
        self._preparer = preparer
        self._max_request_tokens = max_request_tokens
        self._clock = clock
        self._query_thread = ThreadPoolExecutor(1, "tokenise-query")
        self._tokeniser = _Tokeniser(preparer, clock)
        self._line = Batcher(
            [self._tokeniser],
            limits=chunk_limits(limits),
            cost=CostModel(fixed_s=0.0, per_token_s=_CHAR_S),
            name=name,
            clock=clock,
        )
        self._is_stopped = False

    def start(self) -> None:
        """Begin to tokenise."""
        self._line.start()

    async def prepare(
        self, inputs: Sequence[EmbeddingInput], *, lane: Lane, tenant: str = "", timeout_s: float | None
    ) -> list[Features]:
        """Make the features of a request, in the order of its inputs.

        If this call is cancelled, what has not been tokenised yet never is.

        Args:
            inputs: At least one.
            lane: The lane that they will wait in: it is their place here, too.
            tenant: On whose behalf: those of a lane take turns.
            timeout_s: From now; nothing of it is tokenised any more then.

        Raises:
            InputRefusedError: One input cannot be embedded by this model.
            RequestTooLargeError: The inputs together have too many tokens.
            QueueFullError: The lane has more work waiting for the tokeniser than it may.
            DeadlineError: The time-out came first, or would by all that is known.
            ShuttingDownError: The preparation has stopped.
        """
        request = _Request(inputs=inputs, max_tokens=self._max_request_tokens)
        sizes = [preparation_chars(one) for one in inputs]
        num_chars = sum(sizes)
        if num_chars <= _INLINE_CHARS:
            return request.accept(range(len(inputs)), self._preparer.prepare(inputs))
        chunks = [_Chunk(request=request, indices=indices) for indices in cut_chunks(sizes)]
        if lane is Lane.QUERY and num_chars <= _QUERY_CHARS:
            return await self._prepare_query(chunks, timeout_s)
        items = [
            WorkItem(payload=chunk, num_tokens=sum(sizes[chunk.indices.start : chunk.indices.stop]))
            for chunk in chunks
        ]
        try:
            outcome = await self._line.submit(items, lane=lane, tenant=tenant, timeout_s=timeout_s)
        except EntryFailedError as failure:
            reason = failure.__cause__ or failure
            raise reason from reason.__cause__
        return [one for part in outcome.results for one in cast("list[Features]", part)]

    async def _prepare_query(self, chunks: Sequence[_Chunk], timeout_s: float | None) -> list[Features]:
        loop = asyncio.get_running_loop()
        began_s = self._clock()
        features: list[Features] = []
        for chunk in chunks:
            waited_s = self._clock() - began_s
            if waited_s >= (inf if timeout_s is None else timeout_s):
                raise DeadlineError(waited_s=waited_s)
            if self._is_stopped:
                raise ShuttingDownError
            prepared = await loop.run_in_executor(self._query_thread, self._preparer.prepare, chunk.inputs)
            features += chunk.request.accept(chunk.indices, prepared)
        return features

    async def stop(self) -> None:
        """Give up what waits, with ``ShuttingDownError``, and end the threads."""
        self._is_stopped = True
        await self._line.stop(0)
        # What was handed to them takes milliseconds, and finds its batcher closed.
        self._query_thread.shutdown(wait=False)
        self._tokeniser.thread.shutdown(wait=False)


class _Tokeniser:
    """A thread that tokenises, as a batcher knows it: payloads are chunks, results lists of features."""

    depth = 1
    can_interrupt = False
    is_ready = True

    def __init__(self, preparer: Preparer, clock: Callable[[], float]) -> None:
        self.thread = ThreadPoolExecutor(1, "tokenise-document")
        self._preparer = preparer
        self._clock = clock

    async def wait_ready(self) -> None:
        """Return: there is nothing to wait for."""

    async def run(self, payloads: Sequence[object], *, is_urgent: bool, may_interrupt: bool) -> RunResult:
        """Tokenise one chunk; a refused input, or one too many, is the error of its request."""
        del is_urgent, may_interrupt  # Nothing is ever out beside it.
        (chunk,) = payloads
        assert isinstance(chunk, _Chunk)
        loop = asyncio.get_running_loop()
        prepared, spent_s = await loop.run_in_executor(self.thread, self._prepare, chunk.inputs)
        try:
            result = chunk.request.accept(chunk.indices, prepared)
        except (InputRefusedError, RequestTooLargeError) as error:
            result = error
        return RunResult(results=[result], device_s=spent_s)

    def _prepare(self, inputs: Sequence[EmbeddingInput]) -> tuple[list[Features | InputError], float]:
        began_s = self._clock()
        return self._preparer.prepare(inputs), self._clock() - began_s


def chunk_limits(limits: Limits) -> Limits:
    """The lanes' bounds and shares, before a device that runs one chunk after the other."""
    return replace(
        limits,
        max_pass_s=_CHUNK_S,
        max_document_pass_s=_CHUNK_S,
        fill_s=0.0,
        max_pass_tokens=_CHUNK_CHARS,
        max_pass_entries=1,
        max_wait_s=0.0,
        quiet_after_s=0.0,
        interruption_share=0.0,
    )


def preparation_chars(one: EmbeddingInput) -> int:
    """What it takes to prepare an input, in characters; checking an id takes less than reading one."""
    num_chars = len(one.text or "") + len(one.instruction or "") + len(one.token_ids or ())
    return _INPUT_CHARS + num_chars + _IMAGE_CHARS * len(one.images)


def cut_chunks(sizes: Sequence[int]) -> Iterator[range]:
    """Cut a request into what is tokenised at once; an input that is more than a chunk is one by itself.

    Args:
        sizes: Characters of each input.

    Yields:
        The inputs' indices, all of them, in order.
    """
    start = num_chars = 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == _CHUNK_INPUTS or num_chars + size > _CHUNK_CHARS):
            yield range(start, index)
            start, num_chars = index, 0
        num_chars += size
    if start < len(sizes):
        yield range(start, len(sizes))
