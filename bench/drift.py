"""How far cheaper computing moves a model's vectors: the same inputs, in full precision and as asked for.

    python -m bench.drift --model FOLDER_OR_ID [--dtype bfloat16] [--quantize int8] [--device cpu]
                          [--reference-dtype float32] [--texts 64] [--images 16]

One after the other, so that the device holds one of the two at a time. Cosines of each input's two vectors, by
kind: 1.0 is no drift. Texts and images are generated; a model of texts alone gets no images.
"""

import argparse
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.images import noise_image
from bench.loads import lognormal_texts, token_passes
from model import EmbeddingInput, Features, ModelInfo, Preparer, find_checkpoint
from model.loading import load_encoder
from model.worker import LoadOptions
from model.worker.protocol import Quantization

PASS_TOKENS = 2_048
TOKEN_GRIDS = ((16, 16), (12, 24), (24, 12), (20, 30))
"""Rows and columns of the images, in turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Cosines between two computations of the same inputs."""

    num_inputs: int
    least: float
    mean: float


def drift(reference_ND: np.ndarray, candidate_ND: np.ndarray) -> Drift:
    """Compare row by row; rows need not be of unit length."""
    pairs = (reference_ND.astype(np.float64), candidate_ND.astype(np.float64))
    reference, candidate = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pairs)
    cosines = (reference * candidate).sum(axis=1)
    return Drift(num_inputs=len(cosines), least=float(cosines.min()), mean=float(cosines.mean()))


def inputs_by_kind(info: ModelInfo, num_texts: int, num_images: int) -> dict[str, list[EmbeddingInput]]:
    """The same for every model that reads the same images."""
    texts = lognormal_texts(num_texts)
    kinds = {"text": [EmbeddingInput(text=text) for text in texts]}
    if info.images is None or not num_images:
        return kinds
    images = [
        noise_image(info.images.spec, *TOKEN_GRIDS[index % len(TOKEN_GRIDS)], seed=index)
        for index in range(num_images)
    ]
    kinds["image"] = [EmbeddingInput(images=(image,)) for image in images]
    if info.images.is_fused_with_text:
        kinds["fused"] = [
            EmbeddingInput(text=text, images=(image,))
            for text, image in zip(lognormal_texts(num_images, seed=1), images, strict=True)
        ]
    return kinds


def embed(
    options: LoadOptions, *, num_texts: int, num_images: int
) -> tuple[ModelInfo, dict[str, np.ndarray]]:
    """Load, embed everything, and let go of the model again: ``[N, D]`` for each kind."""
    encoder = load_encoder(options, lambda _stage: None)
    preparer = Preparer(encoder.info)
    rows: dict[str, np.ndarray] = {}
    for kind, inputs in inputs_by_kind(encoder.info, num_texts, num_images).items():
        features = sound_features(preparer, inputs)
        rows[kind] = np.concatenate([encoder.encode(one) for one in token_passes(features, PASS_TOKENS)])
    info = encoder.info
    del encoder
    gc.collect()
    return info, rows


def sound_features(preparer: Preparer, inputs: Sequence[EmbeddingInput]) -> list[Features]:
    """Prepare; an input that cannot be embedded ends the run."""
    features: list[Features] = []
    for prepared in preparer.prepare(inputs):
        if not isinstance(prepared, Features):
            raise prepared
        features.append(prepared)
    return features


def described(info: ModelInfo, options: LoadOptions) -> str:
    quantization = "" if options.quantization is None else f", weights in {options.quantization}"
    return f"{info.dtype}{quantization} on {info.device}"


def print_table(drifts: Mapping[str, Drift]) -> None:
    print(f"  {'':<6} {'inputs':>6}  {'cosine, least':>14}  {'mean':>10}")
    for kind, one in drifts.items():
        print(f"  {kind:<6} {one.num_inputs:6}  {one.least:14.6f}  {one.mean:10.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--family", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", type=Quantization, choices=list(Quantization), default=None)
    parser.add_argument("--reference-dtype", default="float32")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    checkpoint = find_checkpoint(arguments.model)
    reference = LoadOptions(
        folder=str(checkpoint.folder),
        source=checkpoint.name,
        device=arguments.device,
        dtype=arguments.reference_dtype,
        family=arguments.family,
    )
    candidate = replace(reference, dtype=arguments.dtype, quantization=arguments.quantize)
    sizes = {"num_texts": arguments.texts, "num_images": arguments.images}
    reference_info, reference_rows = embed(reference, **sizes)
    candidate_info, candidate_rows = embed(candidate, **sizes)
    print(
        f"{checkpoint.name}: {described(candidate_info, candidate)} "
        f"against {described(reference_info, reference)}"
    )
    print_table({kind: drift(rows, candidate_rows[kind]) for kind, rows in reference_rows.items()})


if __name__ == "__main__":
    main()
