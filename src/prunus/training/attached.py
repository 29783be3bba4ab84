"""What `sparsify` must find in a model and its optimizer before it ties them together."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.surgery.masked import is_held

__all__ = ["check_free", "check_parameters", "closure_of", "forget", "torch_optimizer"]


def torch_optimizer(optimizer: Any) -> Optimizer | None:
    """The torch optimizer itself, out of the wrappers of training frameworks.

    Raises:
        TypeError: it is none.
        ValueError: it evaluates the loss itself.
    """
    found = optimizer
    while isinstance(getattr(found, "optimizer", None), Optimizer):
        found = found.optimizer
    if found is None:
        return None
    if not isinstance(found, Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, or None for a loop that calls "
            f".step() itself, got {type(optimizer).__name__}."
        )
    if isinstance(found, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss several times within a step, so that gradients cannot be "
            "masked between them. Take another optimizer."
        )
    return found


def check_free(model: nn.Module) -> None:
    """Raise a ValueError where masks are held on the model, or on a part of it, already."""
    held = [name or "the model" for name, module in model.named_modules() if is_held(module)]
    if held:
        raise ValueError(
            f"Masks are held on {held[0]} already, by `hold` or another `sparsify`, and the two "
            f"would undo each other. Call `.remove()` or `.finish()` on that first."
        )


def check_parameters(
    parameters: Mapping[str, nn.Parameter], needed: Collection[str], optimizer: Optimizer | None
) -> None:
    """Raise a ValueError where a pruned parameter is cut up, or is not the optimizer's.

    Args:
        parameters: of the model, all that can lose entries.
        needed: names of those that hold the pruned weights.
        optimizer: or None.
    """
    for name, parameter in parameters.items():
        if hasattr(parameter, "device_mesh") or "_flat_param" in name:
            raise ValueError(
                f"Parameter {name!r} is spread over several processes ({type(parameter).__name__}, "
                f"as FSDP does), so that none of them can rank its weights. Use "
                f"DistributedDataParallel, or sparsify before sharding is set up."
            )
    if optimizer is None:
        return
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name in needed if id(parameters[name]) not in owned]
    if missing:
        raise ValueError(
            f"The optimizer does not hold {missing[0]!r} ({len(missing)} of {len(needed)} pruned "
            f"weights), so it cannot train what is left of it. Make it of model.parameters(), or "
            f"exclude the layer."
        )


def forget(optimizer: Optimizer | None, parameter: Tensor, where: Tensor) -> None:
    """Clear the optimizer's memory of some entries: every state of the parameter's shape."""
    if optimizer is None:
        return
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), 0)


def closure_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The closure among the arguments of an optimizer's step, or None."""
    return next((given for given in (*args, *kwargs.values()) if callable(given)), None)
