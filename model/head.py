"""The modules behind the transformer: dense layers, layer norm, normalisation. In single precision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from model.errors import CheckpointError
from model.families.family import HeadKind, HeadModule


class Normalize(nn.Module):
    """Rows of unit length. In single precision: in bfloat16 norms are off by up to 7e-4."""

    def forward(self, rows_BD: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, D]``."""
        return F.normalize(rows_BD.float(), p=2, dim=-1)


class Dense(nn.Module):
    """A linear layer with an activation, and optionally the input added to its output."""

    def __init__(self, config: dict[str, Any], activation: nn.Module) -> None:
        super().__init__()
        num_in, num_out = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(num_in, num_out, bias=bool(config.get("bias", True)))
        self.activation = activation
        self.has_residual = bool(config.get("use_residual", False))
        if self.has_residual and num_in != num_out:
            self.residual: nn.Module = nn.Linear(num_in, num_out, bias=False)
        else:
            self.residual = nn.Identity()

    def forward(self, rows_BD: Tensor) -> Tensor:
        """``[B, in_features]`` to ``[B, out_features]``."""
        rows_BD = rows_BD.float()
        out_BD = self.activation(self.linear(rows_BD))
        return out_BD + self.residual(rows_BD) if self.has_residual else out_BD


class LayerNorm(nn.Module):
    """Layer norm over the embedding."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def forward(self, rows_BD: Tensor) -> Tensor:
        """``[B, D]`` to ``[B, D]``."""
        return self.norm(rows_BD.float())


def load_head(modules: Sequence[HeadModule], device: torch.device) -> nn.Sequential:
    """Build the modules with their weights.

    Raises:
        CheckpointError: Weights are missing, left over or not in safetensors, or an activation is unknown.
    """
    return nn.Sequential(*(_load_module(module) for module in modules)).to(device).eval()


def _load_module(module: HeadModule) -> nn.Module:
    match module.kind:
        case HeadKind.NORMALIZE:
            return Normalize()
        case HeadKind.DENSE:
            return _with_weights(Dense(module.config, _activation(module)), module.folder)
        case HeadKind.LAYER_NORM:
            return _with_weights(LayerNorm(module.config), module.folder)


def _activation(module: HeadModule) -> nn.Module:
    dotted_name = str(module.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, name = dotted_name.rpartition(".")
    activation = getattr(nn, name, None)
    if not package.startswith("torch.nn") or not (
        isinstance(activation, type) and issubclass(activation, nn.Module)
    ):
        raise CheckpointError(
            f"{module.folder} uses the activation {dotted_name!r}; served are torch.nn's own"
        )
    return activation()


def _with_weights(module: nn.Module, folder: Path) -> nn.Module:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no model.safetensors; weights in pickles are never loaded")
    result = module.load_state_dict(load_file(weights), strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise CheckpointError(
            f"{weights} does not fit its module: missing {result.missing_keys}, left over "
            f"{result.unexpected_keys}"
        )
    return module
