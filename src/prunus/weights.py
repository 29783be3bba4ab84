"""Where each layer's weight lies in a model: the one place that turns names into parameters.

The name of a layer is its module's name where the module's only weight is `weight`; else it is the
parameter's path, such as `lstm.weight_ih_l0`, with the place in brackets for one of a stack of
matrices: `experts.gate_up_proj[3]`. Masks are kept by parameter (`Weight.path`), as optimizers and
`state_dict` know it; one mask serves all matrices of a stack.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from prunus.ambient import transformed
from prunus.layer import Layer, layer_from
from prunus.views import Matrix, View, known_view, matrices_of, raw_matrices

__all__ = ["Weight", "weight_at", "weights_at", "weights_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Weight:
    """One prunable weight of a model.

    Attributes:
        name: of its layer.
        owner: name of the module whose call shows its inputs.
        module: that module.
        source: how the weight lies in the module.
    """

    name: str
    owner: str
    module: nn.Module
    source: Matrix

    @property
    def path(self) -> str:
        """Name of the parameter in `model.named_parameters()`: the key of its mask."""
        return _joined(self.owner, self.source.parameter)

    @property
    def bias_path(self) -> str | None:
        """Name of the parameter that holds the bias, or None."""
        return None if self.source.bias is None else _joined(self.owner, self.source.bias)

    @property
    def homes(self) -> tuple[str, ...]:
        """Other names that mean this layer: that of its module, where that holds several."""
        return () if self.source.alone or not self.owner else (self.owner,)

    @property
    def view(self) -> View:
        """The order of its axes, and its input vectors."""
        return self.source.view

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter, of which the weight may be a slice."""
        found: nn.Parameter = _tensor(self.module, self.source.parameter)
        return found

    def matrix(self, values: Tensor | None = None) -> Shaped[Tensor, "out in"]:
        """The weight as (out, in), detached; of other values for the parameter where given."""
        values = self.parameter.detach() if values is None else values
        own = values if self.source.index is None else values[self.source.index]
        return self.view.matrix(self.module, own)

    def bias(self) -> Float[Tensor, " out"] | None:
        """The bias, detached; shares memory with the model."""
        if self.source.bias is None:
            return None
        whole: Tensor = _tensor(self.module, self.source.bias).detach()
        return whole if self.source.rows is None else whole[self.source.rows]

    def layer(self) -> Layer:
        """The layer without statistics; weights are detached, never copied.

        Raises:
            ValueError: the weight has a NaN or an infinity; the layer is named.
        """
        return layer_from(
            self.name,
            self.matrix(),
            self.bias(),
            groups=self.source.groups,
            taps=self.source.taps,
            path=self.path,
        )

    def put(self, weight: Float[Tensor, "out in"], bias: Tensor | None = None) -> None:
        """Write a new matrix, and a bias where both are there, in the model's dtype and place."""
        with torch.no_grad():
            whole = self.parameter
            own = whole if self.source.index is None else whole[self.source.index]
            own.copy_(self.view.parameter(self.module, weight.to(whole)))
            place = self.bias()
            if bias is not None and place is not None:
                place.copy_(bias.to(place))

    def put_mask(self, masks: dict[str, Tensor], mask: Bool[Tensor, "out in"]) -> None:
        """Enter the weight's mask among those of the parameters."""
        own = self.view.parameter(self.module, mask).contiguous()
        if self.source.index is None:
            masks[self.path] = own
            return
        whole = masks.get(self.path)
        if whole is None:
            whole = torch.ones(self.parameter.shape, dtype=torch.bool, device=own.device)
        whole = whole.clone()
        whole[self.source.index] = own
        masks[self.path] = whole

    def mask(self, masks: Mapping[str, Tensor]) -> Bool[Tensor, "out in"] | None:
        """The weight's mask among those of the parameters, or None where it has none."""
        found = masks.get(self.path)
        return None if found is None else self.matrix(found)

    def kept(self, masks: Mapping[str, Tensor]) -> Bool[Tensor, "out in"]:
        """The weight's mask among those of the parameters; all kept where it has none."""
        mask = self.mask(masks)
        return torch.ones_like(self.matrix(), dtype=torch.bool) if mask is None else mask

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """What the weight multiplies when its module is called so; None where nothing shows it."""
        return None if transformed() else self.source.inputs(self.module, args, kwargs)


def weights_of(model: nn.Module, named: str | Iterable[str] | None = None) -> dict[str, Weight]:
    """{layer name: weight} of every weight that a view knows, in the order of the modules.

    A module under two names is one module. A weight of a child that its parent's view lists, as
    `nn.MultiheadAttention` does with its `out_proj`, is the parent's.

    Args:
        model: the network.
        named: parameters that no view knows, which code multiplies by without a layer, follow where
            they are among these; a glob does not mean them.
    """
    found: dict[str, Weight] = {}
    taken: set[str] = set()
    viewless: set[type] = set()  # types without a view
    for owner, module in model.named_modules():
        if type(module) in viewless:
            continue
        own = _weights(owner, module)
        if not own and known_view(module) is None:
            viewless.add(type(module))
        for weight in own:
            if weight.path not in taken or weight.source.index is not None:
                found[weight.name] = weight
                taken.add(weight.path)
    asked = {named} if isinstance(named, str) else set(named or ())
    left = asked - found.keys()
    for owner, module in model.named_modules() if left else ():
        raw = _raw(owner, module)
        found |= {w.name: w for w in raw if w.name in left and w.path not in taken}
    return found


def weights_at(model: nn.Module, names: Iterable[str]) -> dict[str, Weight]:
    """The weights of these layers, for which the model is gone through once.

    Raises:
        ValueError: no such layer, or no view knows its module.
    """
    known = weights_of(model)
    return {name: known[name] if name in known else weight_at(model, name) for name in names}


def weight_at(model: nn.Module, name: str) -> Weight:
    """The weight of the layer `name`.

    Raises:
        ValueError: no such layer, or no view knows its module.
    """
    parts = name.split(".") if name else []
    for cut in (2, 1, 0):  # a parent's view first
        if cut > len(parts):
            continue
        owner = ".".join(parts[: len(parts) - cut])
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            continue
        for weight in _weights(owner, module):
            if weight.name == name:
                return weight
    raw = weights_of(model, [name]).get(name)
    if raw is not None:
        return raw
    try:
        kind = type(model.get_submodule(name)).__name__
    except AttributeError:
        raise ValueError(f"The model has no layer {name!r}.") from None
    raise ValueError(
        f"Layer {name!r} is a {kind}, which has no weight view. Register one with "
        f"prunus.layer.register_view."
    )


def _weights(owner: str, module: nn.Module) -> list[Weight]:
    return _named(owner, module, matrices_of(module))


def _raw(owner: str, module: nn.Module) -> list[Weight]:
    return [] if matrices_of(module) else _named(owner, module, raw_matrices(module))


def _named(owner: str, module: nn.Module, sources: Sequence[Matrix]) -> list[Weight]:
    if not sources:
        return []
    held = [source.parameter for source in sources]
    return [
        Weight(name=_name(owner, source, held), owner=owner, module=module, source=source)
        for source in sources
    ]


def _name(owner: str, source: Matrix, held: list[str]) -> str:
    holder, _, leaf = source.parameter.rpartition(".")
    beside = [other for other in held if other.rpartition(".")[0] == holder]
    if leaf == "weight" and len(beside) == 1 and source.index is None:
        return _joined(owner, holder)
    place = "" if source.index is None else f"[{source.index}]"
    return _joined(owner, source.parameter) + place


def _tensor(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _joined(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner and name else owner or name
