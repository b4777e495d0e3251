"""What the benchmarks embed: texts of spread lengths, their features, and passes cut from them."""

import random
from collections.abc import Sequence

from model import EmbeddingInput, Features, Preparer

_WORDS = tuple(
    "the river search index query document vector of and fast slow memory light house garden machine "  # noqa: SIM905 - reads better
    "paper window measure letter between carry silver morning engine answer small large people water".split()
)


def lognormal_texts(
    count: int,
    *,
    median_words: int = 40,
    sigma: float = 1.0,
    least_words: int = 2,
    most_words: int = 1_000_000,
    seed: int = 0,
) -> list[str]:
    """Texts whose lengths are spread as those of real documents: many short, a few very long."""
    rng = random.Random(seed)
    lengths = (
        min(most_words, max(least_words, round(rng.lognormvariate(0, sigma) * median_words)))
        for _ in range(count)
    )
    return [" ".join(rng.choices(_WORDS, k=length)) for length in lengths]


def features_of(preparer: Preparer, texts: Sequence[str]) -> list[Features]:
    """Tokenise.

    Raises:
        InputError: A text cannot be embedded; left out, it would shift the rows of all that follow.
    """
    features: list[Features] = []
    for prepared in preparer.prepare([EmbeddingInput(text=text) for text in texts]):
        if not isinstance(prepared, Features):
            raise prepared
        features.append(prepared)
    return features


def pass_tokens_of(device: str) -> int:
    """Tokens of a pass that keeps a device as busy as larger ones do."""
    return 8_192 if device.startswith("cuda") else 512


def token_passes(features: Sequence[Features], max_tokens: int) -> list[list[Features]]:
    """Cut into passes of at most so many tokens, in the order given; a larger input is a pass by itself."""
    passes: list[list[Features]] = []
    num_tokens = 0
    for one in features:
        if not passes or num_tokens + one.num_tokens > max_tokens:
            passes.append([])
            num_tokens = 0
        passes[-1].append(one)
        num_tokens += one.num_tokens
    return passes


def longest_first(features: Sequence[Features]) -> list[int]:
    """Indices by length: neighbours of equal length share work, and the last passes are the short ones."""
    return sorted(range(len(features)), key=lambda index: -features[index].num_tokens)
