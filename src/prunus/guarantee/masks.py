"""The pruned network behind what a user hands in: a module, a result, or masks."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["masked_model", "pruned_model"]


def pruned_model(model: nn.Module, pruned: Any) -> nn.Module:
    """The pruned module behind a module, a result with `.model`, or {name: mask}."""
    if isinstance(pruned, nn.Module):
        return pruned
    if isinstance(pruned, Mapping):
        return masked_model(model, pruned)
    inner = getattr(pruned, "model", None)
    if isinstance(inner, nn.Module):
        return inner
    raise TypeError(
        f"`pruned` must be a module, a Pruned or {{name: mask}}, got {type(pruned).__name__}."
    )


def masked_model(model: nn.Module, masks: Mapping[str, Any]) -> nn.Module:
    """A copy of the model with zeros where a mask is 0; masks may be matrices or kernel-shaped."""
    found = copy.deepcopy(model)
    modules = dict(found.named_modules())
    for key, given in masks.items():
        name = key.removesuffix(".weight")
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            weighted = ((n, getattr(m, "weight", None)) for n, m in modules.items())
            known = [n for n, w in weighted if isinstance(w, Tensor)]
            raise ValueError(
                f"the mask {key!r} belongs to no layer. Known: {', '.join(known[:8])}."
            )
        mask = torch.as_tensor(given, device=weight.device)
        if mask.numel() != weight.numel() or mask.shape[:1] != weight.shape[:1]:
            raise ValueError(
                f"the mask of {name!r} has shape {tuple(mask.shape)}, its weight "
                f"{tuple(weight.shape)}."
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"the mask of {name!r} must be 0 or 1 everywhere.")
        with torch.no_grad():
            weight.mul_(mask.reshape(weight.shape).to(weight.dtype))
    return found
