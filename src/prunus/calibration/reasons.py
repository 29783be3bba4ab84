"""Why a module's weights cannot be pruned as they stand, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from prunus.check import by_reason

__all__ = ["listed", "no_view", "obstacle", "quantised", "type_name"]


def type_name(module: nn.Module) -> str:
    """The class as its users know it: in full, but for torch's own layers."""
    kind = type(module)
    short = kind.__module__.startswith("torch.nn.modules.")
    return kind.__qualname__ if short else f"{kind.__module__}.{kind.__qualname__}"


def obstacle(module: Any, parameter: str) -> str | None:
    """What stands between a weight and its pruning, or None where nothing does.

    Args:
        module: the module whose type is known.
        parameter: name of the weight within it.
    """
    for part in parameter.split(".")[:-1]:
        module = getattr(module, part)
    leaf = parameter.rpartition(".")[2]
    computed = _computed(module, leaf)
    if computed is not None:
        return computed
    weight = getattr(module, leaf, None)
    if weight is None:
        return f"{type_name(module)} holds no parameter named {leaf}"
    if weight.is_meta:
        return "its weight is on the meta device, so not loaded. Load the weights first"
    if weight.numel() == 0:
        return f"its weight of shape {tuple(weight.shape)} holds no number"
    if weight.is_complex():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, and scores are of reals"
    if not weight.is_floating_point():
        return (
            f"its weight is stored as {str(weight.dtype).removeprefix('torch.')}, so quantised. "
            f"Prune the model before it is quantised"
        )
    return None


def _computed(module: Any, leaf: str) -> str | None:
    """The reason of a weight that is worked out anew from other tensors at every call."""
    owns = module._parameters
    if leaf in getattr(module, "parametrizations", {}):
        return (
            f"its {leaf} is parametrised. Make it plain first with "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r})"
        )
    if f"{leaf}_orig" in owns and hasattr(module, f"{leaf}_mask"):
        return (
            f"its {leaf} is masked by torch.nn.utils.prune. Make it plain first with "
            f"torch.nn.utils.prune.remove(module, {leaf!r})"
        )
    if f"{leaf}_orig" in owns:
        return (
            f"its {leaf} is computed by spectral_norm. Make it plain first with "
            f"torch.nn.utils.remove_spectral_norm(module, {leaf!r})"
        )
    if f"{leaf}_g" in owns and f"{leaf}_v" in owns:
        return (
            f"its {leaf} is computed by weight_norm. Make it plain first with "
            f"torch.nn.utils.remove_weight_norm(module, {leaf!r})"
        )
    if leaf not in owns and getattr(module, leaf, None) is not None:
        return f"its {leaf} is no parameter. Make it an nn.Parameter"
    return None


def quantised(module: nn.Module) -> str | None:
    """The reason of torch's quantised modules and of those prepared for it, or None."""
    places = [kind.__module__ for kind in type(module).__mro__]
    if not any(place.startswith(("torch.ao.nn.", "torch.nn.quantized")) for place in places):
        return None
    if hasattr(module, "weight_fake_quant"):
        return (
            f"{type_name(module)} quantises its weight in its forward. Prune the plain model, then "
            f"prepare it for quantisation"
        )
    if callable(getattr(module, "weight", None)) or hasattr(module, "_packed_params"):
        return f"{type_name(module)} is quantised. Prune the plain model, then quantise it"
    if hasattr(module, "_all_weight_values"):  # recurrent ones
        return f"{type_name(module)} is quantised. Prune the plain model, then quantise it"
    return None


def no_view(module: nn.Module) -> str:
    """The reason of a module of which nobody has said what its weights multiply."""
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "its code is TorchScript, in which nothing can be cut or watched. Prune the plain "
            "module, then script or trace it"
        )
    return (
        f"{type_name(module)} has no weight view; register one with prunus.layer.register_view, or "
        f"name its parameters in `layers` for a recipe without statistics"
    )


def listed(reasons: Mapping[str, str], most: int = 6) -> str:
    """Reasons for a message: each once, with the names it holds for."""
    shown = {name or "the model itself": why for name, why in reasons.items()}
    return "; ".join(f"{_few(names, most)}: {why}" for why, names in by_reason(shown).items())


def _few(names: Sequence[str], most: int) -> str:
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
