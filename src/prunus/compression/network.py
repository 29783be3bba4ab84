"""What of a pruning is stored: its network, the weights that are coded, their masks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.hints import Batch
from prunus.modes import copied
from prunus.result import LayerResult, Pruned
from prunus.surgery.attributes import bare_widths
from prunus.surgery.following import told
from prunus.surgery.removals import removal_of
from prunus.weights import weights_of

__all__ = ["Network", "layers_of", "network_of", "with_state"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A network to be stored.

    Attributes:
        model: with zeros, or compact.
        compact: whether it is.
        weights: {parameter: names of its layers}, of all that a view knows.
        masks: {parameter: mask} of those that were pruned.
        ties: {key of the state: the key that stands for it} of tensors in several places.
        words: what the header has to say of it.
    """

    model: nn.Module
    compact: bool
    weights: Mapping[str, tuple[str, ...]]
    masks: Mapping[str, Tensor]
    ties: Mapping[str, str]
    words: Mapping[str, str]

    def mask(self, name: str) -> Tensor:
        """The mask of a parameter; all True where nothing was removed."""
        found = self.masks.get(name)
        if found is not None:
            return found
        weight = dict(self.model.named_parameters())[name]
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)


def network_of(pruned: Pruned, example: Batch = None) -> Network:
    """The network of a pruning: for nodes and experts the compact one."""
    removal = removal_of(pruned.recipe.granularity)
    compact = pruned.recipe.granularity.shrinks and (removal is None or removal.resizes)
    model = pruned.compact(example) if compact else pruned.model
    parameters = dict(model.named_parameters())
    weights: dict[str, tuple[str, ...]] = {}
    for name, weight in weights_of(model).items():
        if weight.path in parameters and parameters[weight.path].is_floating_point():
            weights[weight.path] = (*weights.get(weight.path, ()), name)
    masks = {}
    if not compact:
        masks = {n: m for n, m in pruned.masks.items() if n in parameters and m.ndim > 0}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        home = first.setdefault(id(value), key)
        if home != key:
            ties[key] = home
    words = {}
    if ties:
        words["ties"] = json.dumps(ties)
    if compact:
        words["compact"] = json.dumps(bare_widths(model))
        numbers = told(pruned.model, model)
        if numbers:
            words["numbers"] = json.dumps(numbers)
    return Network(
        model=model, compact=compact, weights=weights, masks=masks, ties=ties, words=words
    )


def with_state(
    pruned: Pruned,
    network: Network,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    shared: bool,
) -> Pruned:
    """The pruning with the tensors of `state`, those that were stored."""
    model = copied(network.model)
    model.load_state_dict(dict(state))
    if network.compact:
        return replace(pruned, stored_compact=model)
    layers = layers_of(model, pruned.layers, masks)
    if shared:  # errors were those of other values
        layers = {name: replace(layer, error=None) for name, layer in layers.items()}
    return replace(pruned, model=model, layers=layers, masks=dict(masks))


def layers_of(
    model: nn.Module, names: Mapping[str, Any], masks: Mapping[str, Tensor]
) -> dict[str, LayerResult]:
    """The account of each of the layers named, as `model` has them now."""
    found = {}
    for name, weight in weights_of(model, names).items():
        if name not in names:
            continue
        matrix, bias = weight.matrix(), weight.bias()  # of any bits: a file keeps those of NaN too
        mask = weight.mask(masks)
        if mask is None:
            mask = torch.ones_like(matrix, dtype=torch.bool)
        before = names[name]
        if isinstance(before, LayerResult):
            found[name] = replace(before, mask=mask, weight=matrix, bias=bias)
        else:
            found[name] = LayerResult(name=name, mask=mask, weight=matrix, bias=bias)
    return found
