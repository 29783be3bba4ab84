"""The architecture of a compact network from that of the dense one and the compact tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus.surgery.attributes import update_attributes
from prunus.surgery.configs import follow_config
from prunus.surgery.cut import cuts_between
from prunus.surgery.following import retold
from prunus.surgery.norms import is_rms, scale_epsilon

__all__ = ["resize"]


def resize(
    model: nn.Module,
    state: Mapping[str, Tensor],
    widths: Mapping[str, Mapping[str, Any]] | None = None,
    numbers: Mapping[str, Mapping[str, int]] | None = None,
) -> nn.Module:
    """Give `model` the tensors of `state`, whatever their sizes, and the widths that follow.

    Args:
        model: the dense architecture; changed in place.
        state: the `state_dict` of a compact network made from it; it may hold biases that the
            dense one lacks, where constants were folded.
        widths: {module: {attribute: value}} of norms that hold no tensor.
        numbers: {module: {attribute: value}} of heads and widths that other modules were told.

    Returns:
        `model`.

    Raises:
        ValueError: a tensor belongs to no module of the model, or the model has one that `state`
            lacks.
    """
    missing = [name for name in model.state_dict() if name not in state]
    if missing:
        raise ValueError(
            f"The stored network lacks {missing[0]!r}, which the model has. Build the "
            f"architecture that was pruned."
        )
    modules = dict(model.named_modules())
    aliases = dict(model.named_modules(remove_duplicate=False)).keys() - modules.keys()
    before = {
        name: tensor.shape
        for name, tensor in model.state_dict().items()
        if name.rpartition(".")[0] not in aliases
    }
    made: dict[int, nn.Parameter] = {}
    whole = list(model.parameters())  # kept, so that no new tensor takes one's identity
    for name, tensor in state.items():
        owner, _, leaf = name.rpartition(".")
        if owner in aliases:  # one module under two names is given its tensors once
            continue
        module = modules.get(owner)
        if module is None or not (leaf in module._parameters or leaf in module._buffers):
            raise ValueError(
                f"The stored network has {name!r}, which the model lacks. Build the "
                f"architecture that was pruned."
            )
        own = module._parameters.get(leaf)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor.to(module._buffers[leaf].device)
        else:
            like = own if own is not None else next(module.parameters(recurse=False))
            flag = own is None or own.requires_grad
            if own is None or id(own) not in made:  # tensors in several places stay one
                made[id(own)] = nn.Parameter(tensor.to(like.device), requires_grad=flag)
            module._parameters[leaf] = made[id(own)]
    for owner, values in (widths or {}).items():
        for key, value in values.items():
            setattr(modules[owner], key, tuple(value) if isinstance(value, list) else value)
    del whole
    cuts = cuts_between(before, model)
    update_attributes(model, cuts)
    for owner in {parameter.rpartition(".")[0] for parameter, _ in cuts}:
        if is_rms(modules[owner]):  # its weight is stored as corrected, its epsilon is not stored
            scale_epsilon(modules[owner], before[f"{owner}.weight"].numel())
    follow_config(model, before)
    retold(model, numbers or {})
    return model
