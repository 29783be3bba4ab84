"""The recipe: a pruning method as a composition, a frozen value with a readable form."""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from prunus.allocation import ALLOCATIONS, Allocation, Uniform
from prunus.bases import BASES, AsGiven, Basis
from prunus.calibration.statistics import Statistic, combined, resolved
from prunus.check import brief, unknown
from prunus.compensation import COMPENSATIONS, Compensation, NoCompensation
from prunus.courses import COURSES, GROWTHS, Course
from prunus.granularity import GRANULARITIES, Edge, Granularity
from prunus.joint import JOINTS, Joint, NetworkJoint
from prunus.parts import EDGES, LATER, Written, as_part, reason_against, shown
from prunus.schedules import SCHEDULES, OneShot, Schedule
from prunus.scores import SCORES, Magnitude, Score
from prunus.selection import SELECTIONS, Selection, TopK

__all__ = ["Recipe", "as_written", "parse"]

VERSION = 1
SHOWN = 400  # characters of one in a message
LONGEST = 20_000  # characters of a recipe as Python
DEEPEST = 40  # of its nodes inside each other
METHODS: dict[type, tuple[str, ...]] = {  # what a family cannot do without, beside its call
    Granularity: ("pool", "unpool"),
    Course: ("density",),
}


@dataclass(frozen=True)
class Recipe:
    """granularity × score × allocation × selection × compensation × schedule.

    A field takes an entry of its family's table, or any function or object with the family's call:
    what that does not say of itself has the defaults of the family's Protocol, and it is equal to,
    and written like, what was given. Every part says what it can stand beside (`prunus.parts`).

    Attributes:
        granularity: `Edge()`, `EdgePerRow()`, `NM(n, m)` or `Node()`.
        score: a function Layer -> Float[out in]; larger means keep.
        allocation: how many units every pool keeps.
        selection: which ones; or a joint method, which chooses and compensates in one sweep.
        compensation: new values for the kept weights.
        schedule: in how many steps; or a course inside training, which `prunus.sparsify` follows.
        inputs: "dense" calibrates once on the dense model's inputs; "pruned" lets each layer see
            the inputs that already pruned predecessors give it, aiming at the dense outputs.
        basis: what is done to the network before: `AsGiven()` nothing, `Rotate()` turns its stream.

    Raises:
        TypeError: a part that cannot be called, or a class instead of an instance.
        ValueError: parts that do not go together; with the reason that one of them gives.
    """

    granularity: Granularity = field(default_factory=Edge)
    score: Score = field(default_factory=Magnitude)
    allocation: Allocation = field(default_factory=Uniform)
    selection: Selection | Joint | NetworkJoint = field(default_factory=TopK)
    compensation: Compensation = field(default_factory=NoCompensation)
    schedule: Schedule = field(default_factory=OneShot)
    inputs: Literal["dense", "pruned"] = "dense"
    basis: Basis = field(default_factory=AsGiven, metadata={LATER: True})

    def __post_init__(self) -> None:
        if self.inputs not in ("dense", "pruned"):
            raise ValueError(f"`inputs` must be 'dense' or 'pruned', got {self.inputs!r}.")
        for name, family in _families(self.selection, self.schedule).items():
            methods = METHODS.get(family, ("__call__",))
            part: Any = as_part(name, getattr(self, name), family, methods)
            object.__setattr__(self, name, part)
        reason = reason_against(self)
        if reason is not None:
            raise ValueError(reason)

    @property
    def units(self) -> str:
        """The kind of its units: "edges", "nodes", or another that its granularity names."""
        return self.granularity.units

    @property
    def joint(self) -> bool:
        """True where the selection also compensates."""
        return self.selection.joint

    @property
    def refits(self) -> bool:
        """True where kept weights get new values for the outputs of their own layer."""
        return self.compensation.refits or self.selection.refits

    @property
    def statistics(self) -> tuple[str | Statistic, ...]:
        """What must be collected from data; empty where the recipe needs none."""
        parts = (self.score, self.allocation, self.selection, self.compensation)
        return combined(wanted for part in parts for wanted in part.statistics)

    @property
    def deciding(self) -> tuple[str | Statistic, ...]:
        """Those of its statistics that decide what stays; new values may read others."""
        parts = (self.score, self.allocation, self.selection)
        return combined(wanted for part in parts for wanted in part.statistics)

    @property
    def needs_labels(self) -> bool:
        """True where it reads gradients of a loss, so that data come with labels or a `loss`."""
        reads = [statistic.reads for statistic in resolved(self.statistics).values()]
        return self.selection.network or any(
            r.source in ("gradient", "hessian")
            or (r.source in ("slopes", "classes") and r.signal == "loss")
            for r in reads
        )

    @property
    def needs_data(self) -> bool:
        """True where data must be given."""
        return (
            bool(self.statistics)
            or self.granularity.needs_example
            or self.allocation.measures_curves
            or self.selection.network
            or self.inputs == "pruned"
            or self.basis.needs_batches
        )

    def __repr__(self) -> str:
        return self._written(formerly=False)

    def _written(self, *, formerly: bool) -> str:
        parts = [
            f"{f.name}={shown(getattr(self, f.name), formerly=formerly)}"
            for f in fields(self)
            if not (f.metadata.get(LATER) and getattr(self, f.name) == AsGiven())
        ]
        return f"Recipe({', '.join(parts)})"

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over all fields and the version of their meaning.

        The solvers "auto" and "cholesky" of least squares count as one, as their values agree.
        """
        text = f"prunus recipe {VERSION}: {self._written(formerly=True)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _families(selection: Any, schedule: Any) -> dict[str, type]:
    """The Protocol of every field; a joint method or a course has its own."""
    choosing: type = Selection
    if getattr(selection, "joint", False):
        choosing = NetworkJoint if getattr(selection, "network", False) else Joint
    return {
        "granularity": Granularity,
        "score": Score,
        "allocation": Allocation,
        "selection": choosing,
        "compensation": Compensation,
        "schedule": Course if getattr(schedule, "inside", False) else Schedule,
        "basis": Basis,
    }


def parse(text: str) -> Any:
    """A recipe, or a part of one, from its `repr`; nothing is ever executed.

    Raises:
        ValueError: the text is no such expression, or names a part that no table knows.
    """
    if len(text) > LONGEST:
        raise ValueError(
            f"{text[:40]!r}… has {len(text)} characters, more than the {LONGEST} of any recipe."
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{_said(text)} is no recipe: {reason}. Write e.g. TopK().") from None
    except (RecursionError, MemoryError):
        raise _deep(text) from None
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise _deep(text)
    return _build(tree, text)


def _said(code: str) -> str:
    return brief(repr(code), SHOWN)


def _deep(text: str) -> ValueError:
    return ValueError(f"{text[:40]!r}… is nested too deeply for a recipe.")


def as_written(text: str, units: str = EDGES) -> Recipe:
    """The recipe of a saved result, where a user's own parts are `Written`: their text alone.

    Its `repr`, and so its digest, is the text; to prune with it again, put the part itself in the
    place of a `Written` one.

    Args:
        text: the `repr` of a recipe.
        units: of its granularity, for one of the user's own.

    Raises:
        ValueError: the text is no recipe's.
    """
    try:
        known = parse(text)
    except ValueError:
        known = None
    if isinstance(known, Recipe):
        return known
    found: dict[str, Any] = {}
    rest = text
    names = [f.name for f in fields(Recipe) if not f.metadata.get(LATER) or f", {f.name}=" in text]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        opening = f"Recipe({name}=" if name == names[0] else f"{name}="
        if following:
            part, mark, after = rest.partition(f", {following}=")
        else:  # the last bracket is the recipe's own
            part, mark, after = rest.removesuffix(")"), rest[len(rest.removesuffix(")")) :], ""
        if not part.startswith(opening) or not mark:
            raise ValueError(f"{text[:200]!r} is no recipe, which begins 'Recipe(granularity='.")
        try:
            found[name] = parse(part.removeprefix(opening))
        except ValueError:
            found[name] = Written(part.removeprefix(opening), units)
        rest = f"{following}={after}"
    return Recipe(**found)


def _tables() -> dict[str, Any]:
    tables: tuple[Mapping[str, Any], ...] = (
        GRANULARITIES, SCORES, ALLOCATIONS, SELECTIONS, JOINTS, COMPENSATIONS, SCHEDULES,
        COURSES, GROWTHS, BASES,
    )  # fmt: skip
    return {"Recipe": Recipe, **{name: cls for table in tables for name, cls in table.items()}}


def _build(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        known = _tables()
        if node.func.id not in known:
            raise unknown("part of a recipe", node.func.id, known)
        args = [_build(a, text) for a in node.args]
        if any(k.arg is None for k in node.keywords):
            raise ValueError(
                f"{_said(ast.unparse(node))} unpacks a mapping. Write every field out."
            )
        kwargs = {str(k.arg): _build(k.value, text) for k in node.keywords}
        try:
            return known[node.func.id](*args, **kwargs)
        except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
            said = brief(str(error), SHOWN)
            raise ValueError(f"{brief(ast.unparse(node), SHOWN)}: {said}.") from None
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(
            f"{_said(ast.unparse(node))} in {_said(text)} is neither a number, a word in quotes, "
            f"nor a part such as TopK()."
        ) from None
