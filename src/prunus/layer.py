"""A prunable weight seen as a matrix W (out × in), with the statistics of its inputs."""

import difflib
from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunus.check import any_nan, finite
from prunus.views import ConvView, LinearView, View, batched, matrices_of, register_view, view_of

__all__ = [
    "Axis",
    "ConvView",
    "Layer",
    "LinearView",
    "MissingStatistic",
    "View",
    "batched",
    "checked_scores",
    "layer_from",
    "layer_of",
    "missing",
    "register_view",
    "view_of",
]

Axis = Literal["group", "out"]
# The statistics of version 0.1: they read as None where they were not collected, and a layer made
# by hand need not say their first axis.
FIRST: dict[str, Axis] = {
    **dict.fromkeys(
        ("gram", "mean", "diag", "cross", "dense_gram", "dense_mean", "max", "zeros"), "group"
    ),
    **dict.fromkeys(("grad", "sensitivity", "hessian_grad", "flow"), "out"),
}


NEAR = 0.75  # of 1: "wieght" and "weight" are at 0.83, "slope" and "samples" at 0.5


class MissingStatistic(ValueError, AttributeError):
    """A statistic that was not collected was asked of a layer."""


def missing(owner: str, name: str, known: Iterable[str] = ()) -> MissingStatistic:
    """The error for a statistic that a layer or a group lacks, or for a misspelt attribute."""
    # A statistic of another name is no misspelt attribute: near means all but the same letters.
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=NEAR)
    return MissingStatistic(
        f"{owner} has no statistic {name!r}, which this method needs. "
        f"Pass data, or calibrate with statistics=({name!r},)."
        + (f" Or did you mean {near[0]}?" if near else "")
    )


@dataclass(frozen=True, eq=False, kw_only=True, init=False)
class Layer:
    """One prunable weight as a matrix, with what calibration knows of it.

    For a convolution `in` is channels × taps and the inputs are its patches; a grouped one has
    statistics of its inputs per convolution group, stacked along a first axis.

    Every statistic reads as an attribute: `layer.gram`, `layer.mean`, and those of the user's own
    under their names; prunus.calibration.STATISTICS lists ours, with shapes and units.
    `replace(layer, gram=...)` gives another value, None takes it away.

    Attributes:
        name: of the module, or the parameter's path; see `prunus.weights`.
        weight: W (out, in).
        bias: (out,) or None.
        groups: number of convolution groups; 1 for everything else.
        taps: kernel entries per input channel; 1 for a linear layer.
        samples: number of input vectors averaged (samples × positions).
        producer: the layer whose outputs feed this one, where exactly one does.
        statistics: {name: value} of all that were collected, float64.
        axes: what the first axis of each statistic runs over: the convolution groups ("group",
            missing where there is one group) or the rows of W ("out").
        classes: {group: {name: value}} of what was collected of the channel classes that the layer
            reads.
        found: what rules have found of these very weights and statistics for any number of kept
            ones, or None where nothing outlives a call; a layer that is made of it by `replace` has
            none.
    """

    name: str
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    groups: int
    taps: int
    samples: int
    producer: "Layer | None"
    statistics: Mapping[str, Tensor]
    axes: Mapping[str, Axis]
    classes: Mapping[str, Mapping[str, Tensor]]
    found: MutableMapping[Hashable, Any] | None = field(init=False)

    def __init__(
        self,
        *,
        name: str,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None = None,
        groups: int = 1,
        taps: int = 1,
        samples: int = 0,
        producer: "Layer | None" = None,
        statistics: Mapping[str, Tensor] | None = None,
        axes: Mapping[str, Axis] | None = None,
        classes: Mapping[str, Mapping[str, Tensor]] | None = None,
        **changed: Tensor | None,
    ) -> None:
        values = {**(statistics or {}), **changed}
        own: dict[str, object] = {
            "name": name, "weight": weight, "bias": bias, "groups": groups, "taps": taps,
            "samples": samples, "producer": producer,
            "statistics": {key: value for key, value in values.items() if value is not None},
            "axes": {**FIRST, **(axes or {})}, "classes": classes or {}, "found": None,
        }  # fmt: skip
        for key, value in own.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.weight.shape))
        known = ", ".join(self.statistics) or "no statistics"
        return f"Layer({self.name!r}: {shape}, {self.samples:,} input vectors; {known})"

    def __getattr__(self, name: str) -> Tensor | None:
        if name.startswith("_") or "statistics" not in self.__dict__:  # copying, pickling
            raise AttributeError(name)
        if name in self.statistics or name in FIRST:
            return self.statistics.get(name)
        raise missing(f"Layer {self.name!r}", name, self.__dict__)

    @property
    def diag(self) -> Tensor | None:
        """E[x²], (in,) or (groups, in): as collected, or the Gram matrix's diagonal."""
        gram = self.statistics.get("gram")
        own = self.statistics.get("diag")
        return own if own is not None or gram is None else gram.diagonal(dim1=-2, dim2=-1)

    def statistic(self, name: str) -> Tensor:
        """One statistic, or a ValueError that names this layer and what it lacks."""
        value = self.diag if name == "diag" else self.statistics.get(name)
        if value is None:
            raise missing(f"Layer {self.name!r}", name)
        return value

    def require(self, *statistics: str) -> None:
        """Raise a ValueError that names this layer and the first statistic it lacks."""
        for name in statistics:
            self.statistic(name)

    def remembering(self, found: MutableMapping[Hashable, Any]) -> "Layer":
        """The same layer with what rules have found of it, to which they add."""
        made = replace(self)
        object.__setattr__(made, "found", found)
        return made

    def copied(self) -> "Layer":
        """The same layer with weights of its own, which later training of a model leaves alone."""
        bias = None if self.bias is None else self.bias.clone()
        return replace(self, weight=self.weight.clone(), bias=bias)

    def to(self, device: torch.device | str) -> "Layer":
        """The same layer with its tensors on a device."""
        moved = {key: value.to(device) for key, value in self.statistics.items()}
        bias = None if self.bias is None else self.bias.to(device)
        classes = {
            group: {key: value.to(device) for key, value in values.items()}
            for group, values in self.classes.items()
        }
        weight = self.weight.to(device)
        return replace(self, weight=weight, bias=bias, statistics=moved, classes=classes)

    def blocks(self) -> list["Layer"]:
        """One layer per convolution group, with its own rows and statistics; views, no copies."""
        if self.groups == 1:
            return [self]
        rows = self.weight.shape[0] // self.groups
        unknown = [key for key in self.statistics if key not in self.axes]
        if unknown:
            raise ValueError(
                f"Layer {self.name!r} does not say whether the first axis of {unknown[0]!r} runs "
                f"over convolution groups or over rows. Pass axes={{{unknown[0]!r}: 'group'}}."
            )

        def block(g: int) -> Layer:
            own = slice(g * rows, (g + 1) * rows)
            made = replace(
                self,
                weight=self.weight[own],
                bias=None if self.bias is None else self.bias[own],
                groups=1,
                statistics={
                    key: value[g] if self.axes[key] == "group" else value[own]
                    for key, value in self.statistics.items()
                },
            )
            found = self.found
            return made if found is None else made.remembering(found.setdefault(("block", g), {}))

        return [block(g) for g in range(self.groups)]

    def power(self) -> Float[Tensor, "#out in"]:
        """E[x²] of every weight's input, float64: (1, in), or (out, in) for a grouped convolution.

        Raises:
            ValueError: neither the Gram matrix nor its diagonal was collected.
        """
        diag = self.diag
        if diag is None:
            raise MissingStatistic(
                f"Layer {self.name!r} has no statistics `diag` or `gram`, which this method needs. "
                f"Pass data, or calibrate with statistics=('diag',)."
            )
        if self.groups == 1:
            return diag[None]
        return diag.repeat_interleave(self.weight.shape[0] // self.groups, dim=0)


def layer_of(name: str, module: Any) -> Layer:
    """The layer of a module with one weight, without statistics; nothing is copied.

    Raises:
        ValueError: the weight has a NaN or an infinity; the layer is named.
    """
    sources = matrices_of(module)
    if len(sources) != 1 or "." in sources[0].parameter:
        raise ValueError(f"Layer {name!r} is a {type(module).__name__}, which has no weight view.")
    source = sources[0]
    return layer_from(
        name,
        source.view.matrix(module, getattr(module, source.parameter).detach()),
        None if source.bias is None else getattr(module, source.bias).detach(),
        groups=source.groups,
        taps=source.taps,
    )


def layer_from(
    name: str,
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    *,
    groups: int = 1,
    taps: int = 1,
    path: str | None = None,
) -> Layer:
    """A layer without statistics.

    Raises:
        ValueError: the weight or the bias has a NaN or an infinity; the layer is named.
    """
    finite(path or f"{name}.weight".lstrip("."), weight, "Retrain or reload the model.")
    if bias is not None:
        finite(f"{name}.bias".lstrip("."), bias, "Retrain or reload the model.")
    return Layer(name=name, weight=weight, bias=bias, groups=groups, taps=taps)


def checked_scores(name: str, scores: Any, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """A score's answer, or an error that names the layer."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(shape):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"The score of layer {name!r} must be a tensor of shape {tuple(shape)}, got {given}."
        )
    if scores.is_complex():
        raise ValueError(f"The score of layer {name!r} must be real, got {scores.dtype}.")
    if not scores.is_floating_point():  # ranks, counts, masks
        return scores.to(torch.float64)
    if any_nan(scores):
        raise ValueError(
            f"The score of layer {name!r} is NaN in {int(torch.isnan(scores).sum())} of "
            f"{scores.numel()} places. Check the score and the data."
        )
    return scores.detach()


def squeeze_groups(values: Tensor, groups: int) -> Tensor:
    """Statistics stacked per convolution group; a single group loses its axis."""
    return values[0] if groups == 1 else values
