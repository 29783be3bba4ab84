"""What every part of a recipe says of itself, with the defaults of those who say nothing.

The families' Protocols add their calls to these. A part that subclasses its Protocol inherits the
defaults; `own.as_part` fills them in for a plain function or for an object that does not. Nothing
here does any work: `beside` alone is called, to let a part refuse the company it is put in.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from prunus.calibration.statistics import Statistic
from prunus.coupling import Heads
from prunus.layer import Layer

__all__ = [
    "BLOCKS",
    "EDGES",
    "EXPERTS",
    "NODES",
    "UNITS",
    "AllocationFacts",
    "BasisFacts",
    "CompensationFacts",
    "Composition",
    "GranularityFacts",
    "PartFacts",
    "ScheduleFacts",
    "ScoreFacts",
    "SelectionFacts",
    "reason_against",
]

EDGES, NODES, BLOCKS, EXPERTS = "edges", "nodes", "blocks", "experts"
UNITS = (EDGES, NODES, BLOCKS, EXPERTS)


@runtime_checkable
class GranularityFacts(Protocol):
    """What a granularity says of its units and pools."""

    @property
    def units(self) -> str:
        """The kind of its units: "edges", "nodes", or a kind of its own."""
        return EDGES

    @property
    def shrinks(self) -> bool:
        """True where what goes leaves a smaller dense network, which `compact` makes."""
        return self.units in UNITS and self.units != EDGES

    @property
    def pools(self) -> str:
        """What one pool holds: a "layer", a "row", a "block" of a row, a "group" of nodes."""
        return "own"

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(n, m) where it fixes every count: n of the m units of each pool."""
        return None

    @property
    def multiple_of(self) -> int:
        """Kept units of a pool are a multiple of this, or all."""
        return 1

    @property
    def inexact(self) -> bool:
        """True where units may go although what stays then computes something else."""
        return False

    @property
    def part(self) -> str:
        """What of residual blocks is a unit, for units that are blocks: see `Blocks`."""
        return "block"

    @property
    def heads(self) -> Heads:
        """What of attention is a unit: see `Node`."""
        return "kv"

    @property
    def alike(self) -> str | None:
        """What must keep equal numbers of units: the "blocks" of a network, or nothing."""
        return None

    @property
    def needs_example(self) -> bool:
        """True where the units are found by running the network on an example."""
        return False

    @property
    def needs_batches(self) -> bool:
        """True where units are chosen by running the network on the data themselves."""
        return False

    def order(self, layer: Layer) -> Tensor | None:
        """The order of a `Layer`'s columns in which its pools are made, or None as they are."""
        return None

    def beside(self, recipe: "Composition") -> str | None:
        """Why it cannot stand in this recipe, or None."""
        return None


@runtime_checkable
class PartFacts(Protocol):
    """What every other part says."""

    @property
    def serves(self) -> tuple[str, ...]:
        """The kinds of units it is made for."""
        return (EDGES, NODES)

    def beside(self, recipe: "Composition") -> str | None:
        """Why it cannot stand in this recipe, or None."""
        return None


@runtime_checkable
class ScoreFacts(PartFacts, Protocol):
    """What a score says."""

    @property
    def statistics(self) -> Sequence[str | Statistic]:
        """What it reads of a layer beside its weights, as names or `Statistic`s."""
        return ()

    @property
    def gathers(self) -> Sequence[str]:
        """What it reads of the steps of a training; such a score serves `prunus.sparsify` alone."""
        return ()

    @property
    def side(self) -> str:
        """For nodes, whose weights count: "consumer", "producer" or "both"."""
        return "consumer"

    @property
    def reduction(self) -> str:
        """For nodes, how a class's numbers become one: an entry of `prunus.scores.REDUCTIONS`."""
        return "sum"


@runtime_checkable
class AllocationFacts(PartFacts, Protocol):
    """What an allocation says."""

    @property
    def statistics(self) -> Sequence[str | Statistic]:
        """What it reads, as names or `Statistic`s."""
        return ()

    @property
    def minimum(self) -> int:
        """Units that every pool keeps at least, met inside the total."""
        return 1

    @property
    def reads_scores(self) -> bool:
        """False where only the sizes of the pools count."""
        return True

    @property
    def equal_shares(self) -> bool:
        """True where every pool is to keep the same share, as a granularity may fix it."""
        return False

    @property
    def measures_curves(self) -> bool:
        """True where the engine has to measure an error curve of every layer for it."""
        return False


@runtime_checkable
class SelectionFacts(PartFacts, Protocol):
    """What a selection rule, or a joint method in its place, says."""

    @property
    def statistics(self) -> Sequence[str | Statistic]:
        """What it reads, as names or `Statistic`s."""
        return ()

    @property
    def random(self) -> bool:
        """True where the choice follows the seed."""
        return True

    @property
    def concentrates(self) -> bool:
        """True where kept weights are scaled by 1 / π and sums over them concentrate.

        That is E exp(Σ c_i I_i) ≤ Π E exp(c_i I_i) for coefficients of one sign, as for
        independent draws.
        """
        return False

    @property
    def joint(self) -> bool:
        """True where it chooses and compensates in one sweep."""
        return False

    @property
    def network(self) -> bool:
        """True where it searches over all layers at once, on the batches themselves."""
        return False

    @property
    def refits(self) -> bool:
        """True where kept weights get new values for their layer's outputs."""
        return False


@runtime_checkable
class CompensationFacts(PartFacts, Protocol):
    """What a compensation says."""

    @property
    def statistics(self) -> Sequence[str | Statistic]:
        """What it reads, as names or `Statistic`s."""
        return ()

    @property
    def refits(self) -> bool:
        """True where kept weights get new values for their layer's outputs.

        Factors that keep a sampled layer unbiased are then left out, and weights that the network
        also reads elsewhere are refused.
        """
        return True

    @property
    def after_joint(self) -> bool:
        """True where it may follow a method that has compensated already."""
        return False

    @property
    def idle(self) -> bool:
        """True where kept weights and the bias stay what they are, so that it need not be asked."""
        return False


@runtime_checkable
class ScheduleFacts(PartFacts, Protocol):
    """What a schedule says."""

    @property
    def trains(self) -> bool:
        """True where it makes no sense without a `train` function."""
        return False

    @property
    def before_training(self) -> bool:
        """True where an untrained network is pruned.

        Weights then stay as they are until the last round, and a network that falls apart is
        reported.
        """
        return False

    @property
    def single(self) -> bool:
        """True where everything happens in one step, which may be planned ahead."""
        return False

    @property
    def rounds(self) -> int:
        """How many of its steps prune."""
        return 1

    @property
    def inside(self) -> bool:
        """True where masks change inside the caller's training: for `prunus.sparsify` alone."""
        return False

    @property
    def soft(self) -> bool:
        """True where removed weights go on learning behind the mask."""
        return False

    @property
    def renews(self) -> bool:
        """True where every round's new weights aim at the dense network's outputs.

        Otherwise they aim at those of the network as the round found it.
        """
        return False


@runtime_checkable
class BasisFacts(PartFacts, Protocol):
    """What a basis says."""

    @property
    def needs_batches(self) -> bool:
        """True where it reads the data themselves, of the network as it came."""
        return False

    @property
    def widens(self) -> bool:
        """True where embeddings are asked for without `layers`: the stream is what it is for."""
        return False


@runtime_checkable
class Composition(Protocol):
    """A recipe as its parts see it."""

    @property
    def granularity(self) -> GranularityFacts: ...

    @property
    def score(self) -> ScoreFacts: ...

    @property
    def allocation(self) -> AllocationFacts: ...

    @property
    def selection(self) -> SelectionFacts: ...

    @property
    def compensation(self) -> CompensationFacts: ...

    @property
    def schedule(self) -> ScheduleFacts: ...

    @property
    def inputs(self) -> str: ...

    @property
    def basis(self) -> BasisFacts: ...


def reason_against(recipe: Composition) -> str | None:
    """Why these parts do not go together, as the first of them says; None where they do."""
    unit = recipe.granularity.units
    said = recipe.granularity.beside(recipe)
    if said is not None:
        return said
    parts: dict[str, PartFacts] = {
        "score": recipe.score,
        "allocation": recipe.allocation,
        "selection": recipe.selection,
        "compensation": recipe.compensation,
        "schedule": recipe.schedule,
        "basis": recipe.basis,
    }
    for name, part in parts.items():
        said = part.beside(recipe)
        if said is not None:
            return said
        if unit not in part.serves:
            return (
                f"{part!r} serves {' and '.join(part.serves)}, so `granularity` must not be "
                f"{recipe.granularity!r}, whose units are {unit}. Choose another `{name}` or "
                f"`granularity`."
            )
    return None
