"""What is kept or removed as one, as the engine's steps see it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.allocation import CostOf, Pools
from prunus.cost import Cost
from prunus.coupling import Group
from prunus.engine.job import Job
from prunus.joint.protocol import JointResult
from prunus.layer import Layer
from prunus.recipe import Recipe
from prunus.selection import Choice

__all__ = ["Choices", "Fit", "Kept", "Layers", "Picked", "Unit"]

Layers = Mapping[str, Layer]
Kept = Mapping[str, Int[Tensor, " pools"]]
Picked = Choice | JointResult
Choices = Mapping[str, Picked]


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit:
    """New values of one layer.

    Attributes:
        mask: True where a weight is kept.
        weight: zero outside the mask.
        bias: the bias, or None.
        scale: factors that a rescaled selection put on the weights, or None.
        ridge: largest relative damping that a row needed, or None.
        notes: what the selection has to say.
        within: the mask outside which the weight is known to be +0 everywhere, where there is one.
    """

    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    scale: Tensor | None = None
    ridge: float | None = None
    notes: Mapping[str, object] = field(default_factory=dict)
    within: Tensor | None = None


@runtime_checkable
class Unit(Protocol):
    """Single weights, or channel classes: pools, cost, choice, masks, new values.

    A pool's key is the name of what its units belong to: a layer, or a group of channel classes.
    """

    @property
    def job(self) -> Job:
        """What is pruned."""
        ...

    @property
    def recipe(self) -> Recipe:
        """The method of this step."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose statistics it reads."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """{layer: reason} of those that have nothing to remove."""
        ...

    def among(self, known: Collection[str]) -> "Unit":
        """Without what needs other layers than these: they never ran, or do not show enough."""
        ...

    def after(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor],
        classes: Mapping[str, Bool[Tensor, " classes"]],
    ) -> "Unit":
        """The same where all but these masks, or classes, of the model are gone."""
        ...

    def pools(self, layers: Layers, keys: Collection[str] | None = None) -> Pools:
        """Scores of the units of some pools, of all where None."""
        ...

    def blank(self, layers: Layers) -> Pools:
        """Pools of the right sizes without scores."""
        ...

    def left(self, layers: Layers) -> Kept:
        """Units that earlier steps left in their pools; pools that lost none need no number."""
        ...

    def cost(self, layers: Layers) -> CostOf:
        """The exact cost of any plan."""
        ...

    def level(self, kept: Kept) -> Kept:
        """The counts of a plan, made alike where pools must be."""
        ...

    @property
    def cost_before(self) -> Cost:
        """Of the dense network."""
        ...

    @property
    def cut(self) -> Sequence[Group] | None:
        """The groups of channels that can lose classes; None for single weights."""
        ...

    def due(self, names: Sequence[str]) -> tuple[str, ...]:
        """The pools that are decided when these layers' turn comes."""
        ...

    def needs(self, keys: Collection[str]) -> tuple[str, ...]:
        """The layers whose statistics these pools' choices read."""
        ...

    def complete(self, name: str, decided: Collection[str]) -> bool:
        """True where every pool that changes the layer is decided."""
        ...

    def choose(
        self,
        key: str,
        layers: Layers,
        scores: Float[Tensor, "pools units"],
        kept: Int[Tensor, " pools"],
        *,
        remembered: bool,
    ) -> Picked:
        """The units of a pool that stay; remembered choices are drawn once for several recipes."""
        ...

    def masks(self, model: nn.Module, key: str, choice: Picked) -> dict[str, Bool[Tensor, "..."]]:
        """What a choice leaves of every parameter that it changes."""
        ...

    def fit(self, layer: Layer, mask: Bool[Tensor, "out in"], choices: Choices) -> Fit:
        """New values of a layer, of whose weights `mask` keeps some."""
        ...

    def measured(
        self, layer: Layer, fit: Fit, masks: Mapping[str, Tensor]
    ) -> tuple[Fit, float | None]:
        """The values with all masks on them, and the error of the outputs that stay."""
        ...

    def classes(self, choices: Choices) -> dict[str, Bool[Tensor, " classes"]]:
        """The kept channel classes by group; none for single weights."""
        ...
