"""GME-Qwen2-VL's two sizes with random weights: parity, throughput and memory, without a download.

    python -m bench.gme [--shape 2b|7b|tiny] [--device cuda] [--dtype float16] [--quantize int8]
                        [--rounds 5] [--texts 256] [--images 32]

The layers are those of the served model, of the published sizes; what they hold is drawn at random on the
device, so nothing is fetched. Speed and memory are the real ones; vectors mean nothing, but they must agree.

Parity first: every input alone against the same among all others, by cosine. Then arms, in turn within each round:
  texts                 in passes as large as the server's
  texts, one a pass     what a server without batching does
  images of N tokens    likewise, of 256 (the least that the authors' processor makes) and of 1280 (the most)
  fused                 images of 256 tokens, each with a text
  texts again           the control: its ratio to the first must be near 1

``--device cpu --shape tiny`` only shows that it runs; its result is not stored.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from bench.drift import Drift, drift, print_table
from bench.images import noise_image
from bench.loads import pass_tokens_of, token_passes
from bench.packing import timed
from bench.report import Ratio, arguments, averaged, card, paired_ratio, save, verdict
from model import DecodedImage, Features
from model.encoder import Layers
from model.families import gme
from model.families.family import Recipe
from model.head import load_head
from model.quantize import quantize_linear_layers
from model.vision import TwoTowerBackbone
from model.weights import load_config
from model.worker import LoadOptions
from model.worker.protocol import Quantization

IMAGE_TOKEN_ID, VISION_START_ID, VISION_END_ID = 151_655, 151_652, 151_653
NUM_TEMPLATE_TOKENS = 22
"""Of the prompt around a text, with the default instruction (Qwen2's tokenizer)."""

TEXTS, TEXTS_SINGLE, TEXTS_AGAIN = "texts", "texts, one a pass", "texts again"
SMALL, SMALL_SINGLE = "images of 256 tokens", "images of 256 tokens, one a pass"
LARGE, LARGE_SINGLE = "images of 1280 tokens", "images of 1280 tokens, one a pass"
FUSED = "fused"

MAX_PARITY_INPUTS = 6
"""Of each kind."""
MIN_COSINE = {torch.float32: 0.99999, torch.float16: 0.999, torch.bfloat16: 0.99}
"""Alone against packed. Less means that inputs see each other, or that a kernel is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of the two towers, as the published configurations state them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    mrope_section: tuple[int, int, int]
    vision_layers: int = 32
    vision_hidden: int = 1_280
    vision_heads: int = 16

    def config(self) -> dict[str, Any]:
        """``config.json`` in the flat layout in which GME is published."""
        return {
            "model_type": "qwen2_vl",
            "auto_map": {"AutoModel": "modeling_gme_qwen2vl.GmeQwen2VL"},
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 32_768,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": list(self.mrope_section)},
            "rms_norm_eps": 1e-6,
            "image_token_id": IMAGE_TOKEN_ID,
            "vision_start_token_id": VISION_START_ID,
            "vision_end_token_id": VISION_END_ID,
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": self.vision_layers,
                "embed_dim": self.vision_hidden,
                "num_heads": self.vision_heads,
                "mlp_ratio": 4,
                "hidden_size": self.hidden,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
            },
        }


SHAPES = {
    "2b": ModelShape(
        hidden=1_536,
        intermediate=8_960,
        layers=28,
        heads=12,
        key_value_heads=2,
        vocabulary=151_936,
        mrope_section=(16, 24, 24),
    ),
    "7b": ModelShape(
        hidden=3_584,
        intermediate=18_944,
        layers=28,
        heads=28,
        key_value_heads=4,
        vocabulary=152_064,
        mrope_section=(16, 24, 24),
    ),
    "tiny": ModelShape(
        hidden=64,
        intermediate=128,
        layers=2,
        heads=4,
        key_value_heads=2,
        vocabulary=151_936,
        mrope_section=(2, 3, 3),
        vision_layers=2,
        vision_hidden=32,
        vision_heads=2,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Random layers of one shape, on the device."""

    layers: Layers
    recipe: Recipe
    vocabulary: int
    num_parameters: int
    weight_bytes: int
    packing_note: str


def recipe_of(shape: ModelShape) -> Recipe:
    """What the family reads from such a checkpoint's configuration."""
    with tempfile.TemporaryDirectory(prefix="gme-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape.config()))
        return gme.read(Path(folder), LoadOptions(folder=folder, source="gme"))


def random_towers(recipe: Recipe, *, device: str, dtype: torch.dtype) -> Any:
    """The transformers model, its weights drawn on the device itself."""
    assert recipe.towers is not None, "GME has two"
    config = load_config(recipe)
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, recipe.towers.model_class)._from_config(config, dtype=dtype)
    spread_weights(model)
    return model.eval()


def build(
    shape: ModelShape, *, device: str, dtype: torch.dtype, quantization: Quantization | None = None
) -> Model:
    """Draw weights, and pass the gate that served models pass: packed passes equal single ones."""
    recipe = recipe_of(shape)
    assert recipe.towers is not None, "GME has two"
    assert recipe.images is not None, "GME reads images"
    model = random_towers(recipe, device=device, dtype=dtype)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantization is Quantization.INT8:
        quantize_linear_layers(getattr(model, recipe.towers.text))
    backbone = TwoTowerBackbone(model, recipe.towers, recipe.images, pad_id=IMAGE_TOKEN_ID)
    backbone.check_passes(vocab_size=shape.vocabulary)
    return Model(
        layers=Layers(
            backbone=backbone,
            token_head=nn.Sequential(),
            pooling=recipe.pooling,
            head=load_head(recipe.head, backbone.device),
        ),
        recipe=recipe,
        vocabulary=shape.vocabulary,
        num_parameters=num_parameters,
        weight_bytes=sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        packing_note=backbone.packing_note,
    )


@torch.no_grad()
def spread_weights(model: nn.Module) -> None:
    """Draw matrices anew, so that a layer keeps the size of its states. By transformers' own draw (standard
    deviation 0.02) all inputs would be nearly alike, and any two vectors would agree."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)


class Inputs:
    """Features as the preparer makes them, of random ids: no tokenizer is needed."""

    def __init__(self, model: Model, *, seed: int = 0) -> None:
        assert model.recipe.images is not None
        self._spec = model.recipe.images.spec
        self._num_ordinary = min(model.vocabulary, VISION_START_ID)
        self._random = np.random.default_rng(seed)

    def texts(self, count: int) -> list[Features]:
        """Lognormal lengths, as in the other benchmarks, within the 1,800 tokens that the authors read."""
        return [self._row(self._text_length()) for _ in range(count)]

    def images(self, count: int, rows: int, columns: int) -> list[Features]:
        return [self._row(0, noise_image(self._spec, rows, columns, seed=seed)) for seed in range(count)]

    def fused(self, count: int, rows: int, columns: int) -> list[Features]:
        return [
            self._row(min(self._text_length(), 400), noise_image(self._spec, rows, columns, seed=seed))
            for seed in range(count)
        ]

    def _text_length(self) -> int:
        return int(np.clip(self._random.lognormal(np.log(50), 1.0), 2, gme.MAX_TOKENS - NUM_TEMPLATE_TOKENS))

    def _row(self, num_text_tokens: int, image: DecodedImage | None = None) -> Features:
        ordinary = self._random.integers(0, self._num_ordinary, NUM_TEMPLATE_TOKENS + num_text_tokens)
        if image is None:
            return Features(token_ids=ordinary.astype(np.int32))
        image_ids = [VISION_START_ID, *[IMAGE_TOKEN_ID] * image.num_tokens, VISION_END_ID]
        # Behind the system's turn, as in the template.
        ids = np.concatenate([ordinary[:14], image_ids, ordinary[14:]])
        return Features(
            token_ids=ids.astype(np.int32), images=(image.pixels,), num_image_tokens=image.num_tokens
        )


def parity(model: Model, *, count: int) -> dict[str, Drift]:
    """Each input alone against itself in one pass of all of them."""
    inputs = Inputs(model, seed=1)
    kinds = {
        "text": inputs.texts(count),
        "image": [*inputs.images(count, 16, 16), *inputs.images(1, 32, 40)],
        "fused": inputs.fused(count, 8, 20),
    }
    # Kinds take turns in the pass, so that texts have images as neighbours.
    everything = [(kind, one) for kind, some in kinds.items() for one in some]
    shuffled = [everything[index] for index in np.random.default_rng(0).permutation(len(everything))]
    together = model.layers.rows([one for _, one in shuffled])
    alone = np.concatenate([model.layers.rows([one]) for _, one in shuffled])
    return {
        kind: drift(alone[chosen], together[chosen])
        for kind in kinds
        if (chosen := [index for index, (own, _) in enumerate(shuffled) if own == kind])
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What is embedded, cut into passes."""

    passes: Sequence[Sequence[Features]]

    @property
    def num_inputs(self) -> int:
        return sum(map(len, self.passes))

    @property
    def num_tokens(self) -> int:
        return sum(one.num_tokens for cut in self.passes for one in cut)


def arms_of(model: Model, *, num_texts: int, num_images: int, pass_tokens: int) -> dict[str, Arm]:
    inputs = Inputs(model)
    texts = inputs.texts(num_texts)
    small, large = inputs.images(num_images, 16, 16), inputs.images(num_images, 32, 40)

    def packed(features: Sequence[Features]) -> Arm:
        return Arm(passes=token_passes(features, pass_tokens))

    def single(features: Sequence[Features]) -> Arm:
        return Arm(passes=[[one] for one in features])

    return {
        TEXTS: packed(texts),
        TEXTS_SINGLE: single(texts),
        SMALL: packed(small),
        SMALL_SINGLE: single(small),
        LARGE: packed(large),
        LARGE_SINGLE: single(large),
        FUSED: packed(inputs.fused(num_images, 16, 16)),
        TEXTS_AGAIN: packed(texts),
    }


def run_rounds(model: Model, arms: Mapping[str, Arm], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round; a round before the first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(num_rounds + 1):
        for name, arm in arms.items():
            # Rows come back to the host, so the clock stops when the device has finished.
            elapsed_s, _ = timed(worker_of(model, arm))
            if number:
                seconds[name].append(elapsed_s)
    return seconds


def worker_of(model: Model, arm: Arm) -> Callable[[], list[np.ndarray]]:
    return lambda: [model.layers.rows(one) for one in arm.passes]


def throughput_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Ratio]:
    """What packing gives over one input a pass."""
    texts_s = averaged(seconds[TEXTS], seconds[TEXTS_AGAIN])
    return {
        f"{TEXTS} over {TEXTS_SINGLE}": paired_ratio(seconds[TEXTS_SINGLE], texts_s),
        f"{SMALL} over one a pass": paired_ratio(seconds[SMALL_SINGLE], seconds[SMALL]),
        f"{LARGE} over one a pass": paired_ratio(seconds[LARGE_SINGLE], seconds[LARGE]),
    }


def peak_bytes(device: str) -> int | None:
    """The most memory that tensors took, weights included; known on CUDA alone."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None


def main() -> None:
    parser = arguments(__doc__, rounds=5, texts=256)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--quantize", type=Quantization, choices=list(Quantization), default=None)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu --shape tiny shows that this runs")
    measure(options)


def measure(options: argparse.Namespace) -> None:
    dtype = getattr(torch, options.dtype)
    model = build(SHAPES[options.shape], device=options.device, dtype=dtype, quantization=options.quantize)
    print(
        f"GME {options.shape}, {model.num_parameters / 1e6:,.0f} M random parameters, "
        f"{model.weight_bytes / 1e6:,.0f} MB in {options.quantize or options.dtype} on {options.device}; "
        f"{model.packing_note}"
    )
    print("packed against alone")
    agreement = parity(model, count=min(options.images, MAX_PARITY_INPUTS))
    print_table(agreement)
    worst = min(one.least for one in agreement.values())
    if not worst >= MIN_COSINE[dtype]:
        raise SystemExit(f"a cosine of {worst:.6f}: a fast wrong vector is worth nothing")

    pass_tokens = pass_tokens_of(options.device)
    arms = arms_of(model, num_texts=options.texts, num_images=options.images, pass_tokens=pass_tokens)
    seconds = run_rounds(model, arms, options.rounds)
    control = paired_ratio(seconds[TEXTS_AGAIN], seconds[TEXTS])
    ratios = throughput_ratios(seconds)
    rates = {
        name: {
            "inputs_per_s": round(arm.num_inputs / float(np.median(seconds[name])), 1),
            "tokens_per_s": round(arm.num_tokens / float(np.median(seconds[name]))),
        }
        for name, arm in arms.items()
    }
    for name, rate in rates.items():
        print(f"  {name:<34} {rate['inputs_per_s']:9.1f} inputs/s  {rate['tokens_per_s']:9,} tokens/s")
    peak = peak_bytes(options.device)
    if peak is not None:
        print(f"  most memory taken by tensors: {peak / 1e6:,.0f} MB, {pass_tokens} tokens a pass")
    print(f"  control (texts over themselves)     {control}: {verdict(control)}")
    for name, ratio in ratios.items():
        print(f"  {name:<40} {ratio}")
    if options.shape == "tiny":
        print("not stored: this shape only shows that the benchmark runs")
        return
    quantization = "" if options.quantize is None else f"-{options.quantize}"
    save(
        f"gme-{options.shape}-{options.device.partition(':')[0]}-{options.dtype}{quantization}",
        control,
        {
            "card": card(),
            "model": f"GME {options.shape}, random weights",
            "packing": model.packing_note,
            "load": {"texts": options.texts, "images": options.images, "pass_tokens": pass_tokens},
            "parity": {kind: {"least": one.least, "mean": one.mean} for kind, one in agreement.items()},
            "rates": rates,
            "memory_bytes": {"weights": model.weight_bytes, "peak": peak},
            "throughput_ratios": ratios,
        },
    )


if __name__ == "__main__":
    main()
