"""The recipe: a pruning method as a composition, a frozen value with a readable form."""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from prunus.allocation import ALLOCATIONS, ERK, LeastVariance, Planned, Uniform
from prunus.check import unknown
from prunus.compensation import COMPENSATIONS, LeastSquares, NoCompensation
from prunus.granularity import GRANULARITIES, NM, Edge, EdgePerRow, Node
from prunus.joint import JOINTS
from prunus.schedules import SCHEDULES, OneShot
from prunus.scores import SCORES, Magnitude
from prunus.selection import KDPP, SELECTIONS, DPPMap, DPPPoisson, TopK

__all__ = ["Recipe", "parse"]

VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """granularity × score × allocation × selection × compensation × schedule.

    Attributes:
        granularity: `Edge()`, `EdgePerRow()`, `NM(n, m)` or `Node()`.
        score: a function Layer -> Float[out in]; larger means keep.
        allocation: how many units every pool keeps.
        selection: which ones; or a joint method, which chooses and compensates in one sweep.
        compensation: new values for the kept weights.
        schedule: in how many steps.
        inputs: "dense" calibrates once on the dense model's inputs; "pruned" lets each layer see
            the inputs that already pruned predecessors give it, aiming at the dense outputs.
    """

    granularity: Any = field(default_factory=Edge)
    score: Any = field(default_factory=Magnitude)
    allocation: Any = field(default_factory=Uniform)
    selection: Any = field(default_factory=TopK)
    compensation: Any = field(default_factory=NoCompensation)
    schedule: Any = field(default_factory=OneShot)
    inputs: Literal["dense", "pruned"] = "dense"

    def __post_init__(self) -> None:
        if self.inputs not in ("dense", "pruned"):
            raise ValueError(f"`inputs` must be 'dense' or 'pruned', got {self.inputs!r}.")
        if isinstance(self.granularity, type) or not hasattr(self.granularity, "pool"):
            raise TypeError(
                f"`granularity` must be an instance such as Edge(), got {self.granularity!r}. "
                f"Write it with its parentheses."
            )
        for name in ("score", "allocation", "selection", "compensation", "schedule"):
            part = getattr(self, name)
            if isinstance(part, type) or not callable(part):
                raise TypeError(
                    f"`{name}` must be an instance that can be called, got {part!r}. "
                    f"Write it with its parentheses."
                )
        if isinstance(self.granularity, NM) and self.allocation != Uniform():
            raise ValueError(
                f"{self.granularity!r} fixes every count, so `allocation` must be Uniform(), got "
                f"{self.allocation!r}."
            )
        if isinstance(self.allocation, ERK | LeastVariance) and isinstance(self.granularity, Node):
            raise ValueError(
                f"{self.allocation!r} shares single weights among layers, so `granularity` must "
                f"not be Node(). Use Uniform() or Global()."
            )
        if self.joint:
            if not isinstance(self.compensation, NoCompensation | LeastSquares):
                raise ValueError(
                    f"{self.selection!r} chooses and compensates in one sweep, so `compensation` "
                    f"must be NoCompensation() or LeastSquares(), got {self.compensation!r}."
                )
            if isinstance(self.granularity, Node):
                raise ValueError(f"{self.selection!r} removes edges, not nodes.")
        if isinstance(self.selection, KDPP | DPPMap | DPPPoisson) and not isinstance(
            self.granularity, EdgePerRow | Node
        ):
            raise ValueError(
                f"{self.selection!r} draws one set per output row or per group of nodes, so "
                f"`granularity` must be EdgePerRow() or Node(), got {self.granularity!r}."
            )

    @property
    def joint(self) -> bool:
        """True where the selection also compensates."""
        return isinstance(self.selection, tuple(JOINTS.values()))

    @property
    def statistics(self) -> tuple[str, ...]:
        """What must be collected from data; empty where the recipe needs none."""
        wanted: set[str] = set()
        for part in (self.score, self.allocation, self.selection, self.compensation):
            wanted |= set(getattr(part, "statistics", ()))
        if "gram" in wanted:
            wanted.discard("diag")
        return tuple(sorted(wanted))

    @property
    def needs_data(self) -> bool:
        """True where data must be given."""
        nodes = isinstance(self.granularity, Node)
        curves = isinstance(self.allocation, Planned) and not self.allocation.curves
        return bool(self.statistics) or nodes or curves or self.inputs == "pruned"

    def __repr__(self) -> str:
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            parts.append(f"{f.name}={_shown(value)}")
        return f"Recipe({', '.join(parts)})"

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over all fields and the version of their meaning."""
        text = f"prunus recipe {VERSION}: {self!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(value: Any) -> str:
    if is_dataclass(value) or not callable(value):
        return repr(value)
    return f"{value.__module__}.{value.__qualname__}"


def parse(text: str) -> Any:
    """A recipe, or a part of one, from its `repr`; nothing is ever executed.

    Raises:
        ValueError: the text is no such expression, or names a part that no table knows.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{text!r} is no recipe: {reason}. Write e.g. TopK().") from None
    return _build(tree, text)


def _tables() -> dict[str, Any]:
    tables: tuple[Mapping[str, Any], ...] = (
        GRANULARITIES, SCORES, ALLOCATIONS, SELECTIONS, JOINTS, COMPENSATIONS, SCHEDULES,
    )  # fmt: skip
    return {"Recipe": Recipe, **{name: cls for table in tables for name, cls in table.items()}}


def _build(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        known = _tables()
        if node.func.id not in known:
            raise unknown("part of a recipe", node.func.id, known)
        args = [_build(a, text) for a in node.args]
        if any(k.arg is None for k in node.keywords):
            raise ValueError(f"{ast.unparse(node)!r} unpacks a mapping. Write every field out.")
        kwargs = {str(k.arg): _build(k.value, text) for k in node.keywords}
        try:
            return known[node.func.id](*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"{ast.unparse(node)}: {error}.") from None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(
            f"{ast.unparse(node)!r} in {text!r} is neither a number, a word in quotes, nor a part "
            f"such as TopK()."
        ) from None
