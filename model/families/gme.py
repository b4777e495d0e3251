"""GME-Qwen2-VL (arXiv:2412.16855): texts, images and both together, in one space, by Qwen2-VL's two towers.

What is particular about it, as its authors compute (``gme_inference.py`` beside their weights): one prompt
template for everything; the instruction in the system turn, for queries only; the image before the text; two
resizes of an image, one after the other; positions that count token after token, images too, where Qwen2-VL
itself numbers them by row and column; the last token's state.

The checkpoint's own code is never run. It asks for transformers before 4.52; here the two towers of
transformers' own class are called instead, and agree with it to 2e-7 (tests/model/test_gme.py).
"""

import re
from pathlib import Path
from typing import Any, TypeGuard

from model.checkpoint import read_json
from model.errors import CheckpointError
from model.families.family import (
    Family,
    HeadKind,
    HeadModule,
    ImageRecipe,
    Positions,
    Recipe,
    Template,
    Towers,
)
from model.images.spec import ImageSpec, ResizeRule
from model.pooling import Pooling
from model.worker.protocol import LoadOptions, Rope

MAX_TOKENS = 1800
"""What the authors' code reads of an input; the positions reach further, to 32,768."""
MIN_IMAGE_TOKENS = 256
MAX_IMAGE_TOKENS = 1280
"""Bounds of the authors' image processor, for checkpoints that do not say."""

_TEMPLATE = Template(
    pieces=(
        "<|im_start|>",
        "system\n{instruction}",
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "user\n{images}{text}",
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "assistant\n",
        "<|endoftext|>",
    ),
    default_instruction="You are a helpful assistant.",
    instructs_documents=False,
)

_KEY_MAPPING = {
    # transformers 4.52 and later saved the towers under "model."; before, the text tower was "model" itself.
    r"^model\.visual\.": "visual.",
    r"^model\.language_model\.": "language_model.",
    r"^model\.(?!visual|language_model)": "language_model.",
}

_FIRST_RESIZE = ResizeRule(min_tokens=4, max_tokens=16_384, clamps_aspect=True)
"""Of the authors' ``fetch_image``. Left out, the second ends at another grid for every second image."""

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def matches(folder: Path, name: str) -> bool:
    """A Qwen2-VL that says it is GME, or says nothing at all of how to embed with it.

    The latter is most likely a chat model, for which ``read`` knows the better refusal.
    """
    config = read_json(folder / "config.json")
    return _is_qwen2_vl(config) and (_says_gme(config, name) or not (folder / "modules.json").is_file())


def read(folder: Path, options: LoadOptions) -> Recipe:
    """Read the checkpoint's configuration into a recipe.

    Raises:
        CheckpointError: It is no Qwen2-VL, or one that nobody says is GME, or the bounds on image tokens
            contradict each other.
    """
    config = read_json(folder / "config.json")
    if not _is_qwen2_vl(config):
        raise CheckpointError(f"{folder} holds no Qwen2-VL, which GME is built on")
    if options.family != FAMILY.name and not _says_gme(config, options.source):
        raise CheckpointError(
            f"{options.source} is a Qwen2-VL that neither its name nor its config.json calls GME; a chat "
            f"model's vectors mean nothing. If it was trained as GME was, start with --family {FAMILY.name}"
        )
    vision = config.get("vision_config") or {}
    return Recipe(
        family=FAMILY.name,
        transformer_folder=folder,
        pooling=(Pooling.LAST,),
        include_prompt=True,
        head=(HeadModule(kind=HeadKind.NORMALIZE, folder=folder),),
        prompts={},
        default_prompt_name=None,
        max_tokens=config.get("max_length", MAX_TOKENS),
        reads_more_on_request=True,
        # Flat as published; nested since transformers 5 saves it.
        dimension=(config.get("text_config") or config).get("hidden_size"),
        template=_TEMPLATE,
        towers=Towers(
            model_class="Qwen2VLModel",
            config_class="Qwen2VLConfig",
            config={key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL},
            key_mapping=_KEY_MAPPING,
            ignored_weights=("lm_head.weight",),
            vision="visual",
            text="language_model",
            positions=Positions.GRID if options.rope is Rope.MROPE else Positions.SEQUENTIAL,
        ),
        images=ImageRecipe(
            spec=ImageSpec(
                patch_size=vision.get("patch_size", 14),
                merge_size=vision.get("spatial_merge_size", 2),
                resizes=(_FIRST_RESIZE, _second_resize(config, options)),
            ),
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            mean=_CLIP_MEAN,
            std=_CLIP_STD,
            start_token="<|vision_start|>",
            pad_token="<|image_pad|>",
            end_token="<|vision_end|>",
            max_images=1,
            is_fused_with_text=True,
        ),
    )


_NOT_OF_THE_MODEL = frozenset(
    # Which code to run, and what GME's own configuration adds.
    {"model_type", "auto_map", "architectures", "min_image_tokens", "max_image_tokens", "max_length"}
)


def _is_qwen2_vl(config: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(config, dict) and config.get("model_type") == "qwen2_vl"


# A word by itself: "segmentation" has the same letters.
_NAMES_GME = re.compile(r"(?<![a-z])gme(?![a-z])", re.IGNORECASE)
_CODE_CLASS = "GmeQwen2VL"
"""What the classes begin with that its authors put beside the weights."""


def _says_gme(config: dict[str, Any], name: str) -> bool:
    """By its own name, or by that of its code: ``modeling_gme_qwen2vl.GmeQwen2VL``."""
    code = config.get("auto_map")
    code_names = map(str, code.values()) if isinstance(code, dict) else ()
    return _NAMES_GME.search(name) is not None or any(
        one.rpartition(".")[2].startswith(_CODE_CLASS) for one in code_names
    )


def _second_resize(config: dict[str, Any], options: LoadOptions) -> ResizeRule:
    min_tokens = options.images.min_tokens or config.get("min_image_tokens", MIN_IMAGE_TOKENS)
    max_tokens = options.images.max_tokens or config.get("max_image_tokens", MAX_IMAGE_TOKENS)
    if min_tokens > max_tokens:
        least = "--min-image-tokens" if options.images.min_tokens else "the model's own bound"
        most = "--max-image-tokens" if options.images.max_tokens else "the model's own bound"
        raise CheckpointError(
            f"images have {min_tokens} tokens at least ({least}) and {max_tokens} at most ({most}); lower "
            "--min-image-tokens, or raise --max-image-tokens"
        )
    return ResizeRule(min_tokens=min_tokens, max_tokens=max_tokens, clamps_aspect=False)


FAMILY = Family(
    name="gme",
    summary="GME-Qwen2-VL: texts, images and both together",
    matches=matches,
    read=read,
)
