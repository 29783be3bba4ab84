"""How a joint method is called, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prunus.calibration.batches import Batches
from prunus.granularity import Granularity
from prunus.hints import Loss
from prunus.layer import Layer
from prunus.parts import EDGES, Composition, SelectionFacts

__all__ = ["Joint", "JointResult", "NetworkJoint", "is_joint", "is_network"]


@dataclass(frozen=True, eq=False, kw_only=True)
class JointResult:
    """Masks and weights of one layer.

    Attributes:
        mask: True where a weight is kept, exactly the counts asked for.
        weight: the new weights, exactly zero outside the mask.
        ridge: relative damping used.
        notes: what the method has to say of the layer.
    """

    mask: Bool[Tensor, "out in"]
    weight: Float[Tensor, "out in"]
    ridge: float | None = None
    notes: Mapping[str, Any] | None = None


@runtime_checkable
class JointFacts(SelectionFacts, Protocol):
    """What both forms of a joint method say: they stand beside none or a final least squares."""

    @property
    def serves(self) -> tuple[str, ...]:
        """Single weights."""
        return (EDGES,)

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools of a granularity that it can fill."""
        return ("layer", "row", "block")

    @property
    def joint(self) -> bool:
        """Yes."""
        return True

    @property
    def random(self) -> bool:
        """Not as a rule."""
        return False

    @property
    def refits(self) -> bool:
        """Yes, as a rule."""
        return True

    def beside(self, recipe: Composition) -> str | None:
        """Refuses a compensation that does not follow another, and pools it cannot fill."""
        if not recipe.compensation.after_joint:
            return (
                f"{self!r} chooses and compensates in one sweep, so `compensation` must be "
                f"NoCompensation() or LeastSquares(), got {recipe.compensation!r}."
            )
        if recipe.schedule.renews:
            return (
                f"{self!r} gives kept weights their values itself, so `schedule` must not be "
                f"{recipe.schedule!r}, whose rounds compensate for it. Use OneShot()."
            )
        if recipe.granularity.units not in self.serves:
            return f"{self!r} removes edges, not nodes."
        if recipe.granularity.pools not in self.pools:
            return (
                f"{self!r} fills pools of a {' or a '.join(self.pools)}, got "
                f"{recipe.granularity!r}. {POOLS}"
            )
        return None


POOLS = "Edge() has a layer in each pool, EdgePerRow() a row, NM(n, m) a block."


@runtime_checkable
class Joint(JointFacts, Protocol):
    """A joint method that takes one layer at a time."""

    def __call__(
        self, layer: Layer, granularity: Granularity, kept: Int[Tensor, " pools"]
    ) -> JointResult: ...


@runtime_checkable
class NetworkJoint(JointFacts, Protocol):
    """A joint method that searches over all layers at once.

    The counts are planned before it runs, so the allocation must not read scores. It may change
    `model`, which is a copy; the engine writes its results into the network, and what it has made
    of the buffers (statistics of norms).
    """

    @property
    def network(self) -> bool:
        """Yes."""
        return True

    @property
    def moves(self) -> bool:
        """True where it may move counts between layers: their total stays, the plan follows."""
        return False

    def beside(self, recipe: Composition) -> str | None:
        """Refuses what no joint method stands beside, and what one search cannot serve."""
        said = JointFacts.beside(self, recipe)
        if said is not None:
            return said
        if recipe.allocation.reads_scores:
            return (
                f"{self!r} searches after the counts are planned, so `allocation` must not read "
                f"scores, got {recipe.allocation!r}. Use Uniform() or ERK()."
            )
        if recipe.schedule.rounds > 1 or recipe.inputs == "pruned":
            return (
                f"{self!r} searches all layers at once, so it is pruned in one round and with "
                f"inputs='dense', got {recipe.schedule!r} and inputs={recipe.inputs!r}."
            )
        return None

    def __call__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        kept: Mapping[str, Int[Tensor, " pools"]],
        batches: Batches,
        *,
        loss: Loss | None,
        granularity: Granularity,
        seed: int,
        progress: bool | None,
    ) -> dict[str, JointResult]: ...


def is_joint(rule: SelectionFacts) -> TypeGuard[Joint]:
    """True where a rule is called as `Joint` is."""
    return rule.joint and not rule.network


def is_network(rule: SelectionFacts) -> TypeGuard[NetworkJoint]:
    """True where a rule is called as `NetworkJoint` is."""
    return rule.network
