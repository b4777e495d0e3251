"""The texts of a setup, drawn once, with the vectors that they must get."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.arms import Setup, Words
from bench.client import REQUEST_TEXTS
from bench.loads import lognormal_texts
from bench.vectors import Corpus, corpus_of
from model import Preparer
from model.worker import Worker

LONG_SHARE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpora:
    """All texts, with their vectors."""

    queries: Corpus
    documents: Corpus
    long_documents: Corpus | None
    """The documents, two in a hundred of them as long as the model reads. ``None`` where others are as long."""
    overload: Corpus


def has_long_documents(setup: Setup) -> bool:
    """Whether the model reads texts that are much longer than the other documents."""
    return setup.max_tokens > 2 * setup.document_words.most


async def make_corpora(
    setup: Setup, preparer: Preparer, workers: Sequence[Worker], *, num_texts: int
) -> Corpora:
    """Draw all texts, and have their vectors computed."""
    documents = spread_texts(num_texts, setup.document_words, seed=1)
    # A few ids and a special token at each end are kept free.
    long_words = setup.max_tokens - 16

    async def corpus(texts: Sequence[str], request_texts: int) -> Corpus:
        return await corpus_of(texts, preparer=preparer, workers=workers, request_texts=request_texts)

    return Corpora(
        queries=await corpus(spread_texts(num_texts, setup.query_words, seed=2), 1),
        documents=await corpus(documents, REQUEST_TEXTS),
        long_documents=await corpus(with_long_texts(documents, long_words), REQUEST_TEXTS)
        if has_long_documents(setup)
        else None,
        overload=await corpus(
            lognormal_texts(1_024, median_words=setup.overload_words, sigma=0.0, seed=3), 1
        ),
    )


def spread_texts(count: int, words: Words, *, seed: int) -> list[str]:
    return lognormal_texts(
        count,
        median_words=words.median,
        sigma=words.sigma,
        least_words=words.least,
        most_words=words.most,
        seed=seed,
    )


def with_long_texts(texts: Sequence[str], num_words: int) -> list[str]:
    """The texts, but every fiftieth is long."""
    every = round(1 / LONG_SHARE)
    long = iter(lognormal_texts(-(-len(texts) // every), median_words=num_words, sigma=0.0, seed=4))
    return [next(long) if index % every == every // 2 else text for index, text in enumerate(texts)]
