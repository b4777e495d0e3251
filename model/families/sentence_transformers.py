"""The generic family: any text checkpoint in sentence-transformers' layout, and plain encoders.

``modules.json`` lists the modules; each has a folder with its configuration. A folder without it is a plain
transformer, which sentence-transformers reads as mean pooling. Both spellings of the format are read: the
one before release 5.4 (``sentence_transformers.models.Pooling``, ``pooling_mode_mean_tokens``) and the one
since (``sentence_transformers.sentence_transformer.modules.pooling.Pooling``, ``pooling_mode``).

Law of this file: a module, a mode or an activation that is not known here is refused by name. Left out or
replaced by a default it would still give vectors, only wrong ones.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.checkpoint import read_json
from model.errors import CheckpointError
from model.families.family import Family, HeadKind, HeadModule, Recipe
from model.pooling import Pooling
from model.worker.protocol import LoadOptions

# File names under which releases since 2019 have kept the transformer module's settings.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

_LEGACY_POOLING_KEYS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LEN,
    "pooling_mode_weightedmean_tokens": Pooling.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}
"""In the order in which several modes' vectors are laid end to end."""

_PLAIN_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
"""How the transformer is called on text, and what is read of it."""

_TRANSFORMER_KEYS = frozenset(
    {
        "max_seq_length",
        "do_lower_case",
        "transformer_task",
        "modality_config",
        "module_output_name",
        # Says how sentence-transformers computes, not what.
        "unpad_inputs",
    }
)

_SERVED_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


def matches(folder: Path, _name: str) -> bool:
    """Every folder with a description of a transformer is taken; ``read`` refuses what it cannot serve."""
    return (folder / "modules.json").is_file() or (folder / "config.json").is_file()


def read(folder: Path, _options: LoadOptions) -> Recipe:
    """Read the checkpoint's modules into a recipe.

    Raises:
        CheckpointError: A file is missing or malformed, or a module is of a kind that is not served.
    """
    modules = read_json(folder / "modules.json")
    if modules is None:
        return _read_plain(folder)
    if not isinstance(modules, list) or not all(isinstance(m, dict) and "type" in m for m in modules):
        raise CheckpointError(f"{folder / 'modules.json'} is not a list of modules")
    kinds = [_module_kind(folder, str(module["type"])) for module in modules]
    folders = [folder / str(module.get("path") or "") for module in modules]
    if kinds[:1] != ["Transformer"] or kinds.count("Transformer") != 1 or kinds.count("Pooling") != 1:
        raise CheckpointError(
            f"{folder / 'modules.json'} lists {', '.join(kinds) or 'nothing'}; served are checkpoints of "
            "one Transformer "
            "first and one Pooling behind it"
        )
    pooling_index = kinds.index("Pooling")
    head = tuple(
        _head_module(kind, module_folder, before_pooling=index < pooling_index)
        for index, (kind, module_folder) in enumerate(zip(kinds, folders, strict=True))
        if kind in ("Dense", "LayerNorm", "Normalize")
    )
    transformer = _transformer_config(folders[0])
    pooling_config = _json_object(folders[pooling_index] / "config.json")
    prompts, default_prompt_name = _prompts(folder)
    return Recipe(
        family=FAMILY.name,
        transformer_folder=folders[0],
        pooling=_pooling_modes(pooling_config, folders[pooling_index]),
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        head=head,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        max_tokens=transformer.get("max_seq_length"),
        dimension=_stated_dimension(pooling_config, head),
        lowercase=bool(transformer.get("do_lower_case", False)),
    )


def _read_plain(folder: Path) -> Recipe:
    architectures = [str(name) for name in _json_object(folder / "config.json").get("architectures") or ()]
    generators = [name for name in architectures if "CausalLM" in name or "ConditionalGeneration" in name]
    if generators:
        raise CheckpointError(
            f"{folder} holds a generator ({generators[0]}) and no modules.json: nothing says how to embed "
            "with it; "
            "name a checkpoint that was trained for embeddings"
        )
    prompts, default_prompt_name = _prompts(folder)
    return Recipe(
        family=FAMILY.name,
        transformer_folder=folder,
        pooling=(Pooling.MEAN,),
        include_prompt=True,
        head=(),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        max_tokens=None,
        dimension=None,
        lowercase=False,
    )


def _module_kind(folder: Path, dotted_type: str) -> str:
    package, _, kind = dotted_type.rpartition(".")
    if not package.startswith("sentence_transformers"):
        raise CheckpointError(
            f"{folder} needs the module {dotted_type}, which is code of the checkpoint's own; such code is "
            "never run here"
        )
    if kind not in _SERVED_MODULES:
        raise CheckpointError(
            f"{folder} needs the module {dotted_type}, which is not served; served are "
            f"{', '.join(_SERVED_MODULES)}"
        )
    return kind


def _transformer_config(folder: Path) -> dict[str, Any]:
    config = next(
        (c for c in (read_json(folder / name) for name in _TRANSFORMER_CONFIGS) if c is not None), {}
    )
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: the transformer module's settings are not an object")
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise CheckpointError(f"{folder} uses its transformer for {task!r}; served is feature-extraction")
    modalities = config.get("modality_config") or {"text": _PLAIN_TEXT}
    if "message" in modalities:
        raise CheckpointError(
            f"{folder} renders its inputs through a chat template (modality_config), "
            "which this family does not serve"
        )
    output = config.get("module_output_name", "token_embeddings")
    if {**_PLAIN_TEXT, **modalities.get("text", {})} != _PLAIN_TEXT or output != "token_embeddings":
        raise CheckpointError(
            f"{folder} does not read its transformer's last hidden state, which is not served"
        )
    unknown = [key for key, value in config.items() if value and key not in _TRANSFORMER_KEYS]
    if unknown:
        raise CheckpointError(f"{folder} sets {unknown[0]} for its transformer, which is not served")
    return config


def _stated_dimension(pooling_config: dict[str, Any], head: Sequence[HeadModule]) -> int | None:
    """What the last module that changes the size says of it."""
    for module in reversed(head):
        if module.kind is HeadKind.DENSE:
            return None if module.on_tokens else module.config.get("out_features")
    width = pooling_config.get("embedding_dimension", pooling_config.get("word_embedding_dimension"))
    return None if width is None else width * len(_pooling_modes(pooling_config, Path()))


def _pooling_modes(config: dict[str, Any], folder: Path) -> tuple[Pooling, ...]:
    named = config.get("pooling_mode")
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
        unknown = [name for name in names if name not in list(Pooling)]
        if unknown:
            raise CheckpointError(f"{folder} pools by {unknown[0]!r}; served are {', '.join(Pooling)}")
        return tuple(Pooling(name) for name in names)
    unknown_keys = [
        key for key in config if key.startswith("pooling_mode_") and key not in _LEGACY_POOLING_KEYS
    ]
    if any(config[key] for key in unknown_keys):
        raise CheckpointError(
            f"{folder} pools by {unknown_keys[0]!r}; served are {', '.join(_LEGACY_POOLING_KEYS)}"
        )
    modes = tuple(mode for key, mode in _LEGACY_POOLING_KEYS.items() if config.get(key))
    return modes or (Pooling.MEAN,)


def _head_module(kind: str, folder: Path, *, before_pooling: bool) -> HeadModule:
    config = read_json(folder / "config.json") or {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not an object")
    if kind == "LayerNorm":
        return HeadModule(kind=HeadKind.LAYER_NORM, folder=folder, config=config)
    reads = config.get("module_input_name", "sentence_embedding")
    writes = config.get("module_output_name") or reads
    on_tokens = reads == "token_embeddings"
    if reads != writes or on_tokens != before_pooling:
        raise CheckpointError(
            f"{folder} reads {reads!r} and writes {writes!r} at a place where that is not served"
        )
    return HeadModule(kind=HeadKind(kind.lower()), folder=folder, config=config, on_tokens=on_tokens)


def _prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    config = read_json(folder / "config_sentence_transformers.json") or {}
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config_sentence_transformers.json'} is not an object")
    # Since release 5 an absent text is written as null.
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    default_name = config.get("default_prompt_name")
    if default_name is not None and default_name not in {**prompts, "query": "", "document": ""}:
        raise CheckpointError(f"{folder}: default_prompt_name {default_name!r} is not among its prompts")
    return prompts, default_name


def _json_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is missing or not an object")
    return content


FAMILY = Family(
    name="sentence-transformers",
    summary="text checkpoints in sentence-transformers' layout, and plain encoders with mean pooling",
    matches=matches,
    read=read,
)
