"""A physically smaller dense copy of a pruned model, deduced from its zeros and verified equal."""

import contextlib
import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from prunus.coupling import Group
from prunus.coupling.groups import coupling_of_trace
from prunus.coupling.walk import NotTraceable
from prunus.surgery.dead import CONVOLUTIONS, dead_units, fold, is_depthwise, run
from prunus.surgery.verify import CompactionError, verify_equal

__all__ = ["CompactionError", "compact", "update_attributes"]

Removed = dict[tuple[str, int], list[int]]  # (parameter, axis) -> positions


def compact(model: Any, example: Any, *, rtol: float = 1e-4) -> nn.Module:
    """A smaller dense network that computes what the given one does, without its dead units.

    A unit (channel class, see `prunus.coupling`) goes when every consumer either has only zero
    columns for it, or reads from it a constant c that no input changes; c is then folded into
    the consumer's bias, b ← b + W_j c, which is added where there is none. The unit stays where
    c ≠ 0 meets zero padding (at the border it is no constant), where a norm's statistics would
    change, and where the model's code writes the width down. One removal can empty other units,
    so this repeats until nothing changes. Every layer keeps at least one unit.

    Constants are those of eval mode. In training mode a batch norm of a constant channel emits
    its shift whatever the running mean says, so that a folded constant which has passed a batch
    norm is exact in eval mode only; units that emit nothing, as those that `Node` pruning
    removes, are exact in both.

    Args:
        model: a module, or anything with `.model`, such as a `Pruned`; left as it is.
        example: one batch (tensor, tuple whose first element is the input, or mapping): the
            model is traced, constants are read and the result is verified on it.
        rtol: largest accepted error, relative to max|output|. In float64 at most 1e-9 is
            accepted, in half precision at least 8 times the precision's rounding.

    Returns:
        A copy with the same classes of modules, dtype, device, training flags and requires_grad.

    Raises:
        CompactionError: the model cannot be traced, or the smaller network fails or differs;
            the message names the first layer where it does.
    """
    module: nn.Module = model if isinstance(model, nn.Module) else model.model
    small = copy.deepcopy(module)
    try:
        groups = coupling_of_trace(small, example).groups
    except NotTraceable as reason:
        raise CompactionError(f"The model cannot be made smaller: {reason}.") from reason
    groups = tuple(group for group in groups if group.exact and not group.written)
    removed = _empty(small, groups, example)
    kept = _shrink(small, removed)
    _update_bare_norms(small, example)
    verify_equal(module, small, example, kept=kept, rtol=rtol)
    return small


def _shrink(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Cut the positions out of parameters and buffers; return what each layer has kept."""
    for (parameter, axis), gone in list(removed.items()):
        name, _, leaf = parameter.rpartition(".")
        if (
            axis == 0
            and leaf == "weight"
            and getattr(model.get_submodule(name), "bias", None) is not None
        ):
            removed[f"{name}.bias", 0] = gone  # also a bias that folding has added
    kept: dict[str, Tensor] = {}
    for (parameter, axis), gone in removed.items():
        if not gone:
            continue
        name, _, leaf = parameter.rpartition(".")
        module = model.get_submodule(name)
        tensor: Tensor = getattr(module, leaf)
        stays = torch.ones(tensor.shape[axis], dtype=torch.bool)
        stays[gone] = False
        index = stays.nonzero().flatten()
        cut = tensor.detach().index_select(axis, index.to(tensor.device))
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(cut, requires_grad=tensor.requires_grad)
        else:
            module._buffers[leaf] = cut
        if axis == 0 and leaf == "weight":
            kept[name] = index
    for module in {model.get_submodule(parameter.rpartition(".")[0]) for parameter, _ in removed}:
        update_attributes(module)
    return kept


def _update_bare_norms(model: nn.Module, example: Any) -> None:
    """Widths of instance norms that hold no tensor, read off as they run."""

    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        module.num_features = inputs[0].shape[inputs[0].ndim - module._get_no_batch_dim()]

    bare = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.instancenorm._InstanceNorm)
        and not (module.affine or module.track_running_stats)
    ]
    handles = [module.register_forward_pre_hook(hook) for module in bare]
    try:
        if bare:
            with contextlib.suppress(Exception):  # the verification runs it again and reports
                run(model, example)
    finally:
        for handle in handles:
            handle.remove()


def update_attributes(module: nn.Module) -> None:
    """Widths that a module keeps beside its weights."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, CONVOLUTIONS):
        if is_depthwise(module):
            multiplier = module.out_channels // module.in_channels
            module.groups = len(weight) // multiplier
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):  # instance norms among them
        width = next(v for v in (weight, module.running_mean) if v is not None)
        module.num_features = len(width)
    elif isinstance(module, nn.GroupNorm):  # exact only with one channel per norm group
        module.num_groups = module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


def _empty(model: nn.Module, groups: tuple[Group, ...], example: Any) -> Removed:
    """Fold and zero dead units until none is left; return the positions that can go."""
    left = {
        (slot.parameter, slot.axis): model.state_dict()[slot.parameter].shape[slot.axis]
        for group in groups
        for slot in group.slots
    }
    alive = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    changed = True
    while changed:
        changed = False
        found = dead_units(model, groups, alive, example)
        for group, dead in zip(groups, found, strict=True):
            going = dead.units.clone()
            if not going.any():
                continue
            most = min(
                (left[s.parameter, s.axis] - 1) // int((s.unit == s.unit[0]).sum())
                for s in group.slots
            )
            spared = going.nonzero().flatten()[: max(0, int(going.sum()) - most)]
            going[spared] = False  # the lowest stay where a layer would be left without units
            if not going.any():
                continue
            fold(model, group, going, dead.inputs)
            for slot in group.slots:
                left[slot.parameter, slot.axis] -= int(going[slot.unit].sum())
            alive[group.name] &= ~going
            changed = True
    removed: Removed = defaultdict(list)
    for group in groups:
        for slot in group.slots:
            gone = ~alive[group.name][slot.unit]
            removed[slot.parameter, slot.axis] += slot.index[gone].tolist()
    return removed
