"""How many units every layer keeps: whole numbers, in memory and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prunus.check import unknown, whole
from prunus.notebook import view
from prunus.reading import Probability, Schema, Spread, json_object, validated
from prunus.rows import RowSet

__all__ = ["Counts", "Plan"]

Counts = int | Sequence[int]  # of a layer or group in all, or of each of its pools


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Whole numbers: how many units every layer (or group of nodes) keeps.

    Attributes:
        kept: {name: count, or one count per pool}.
        density: kept / total over the planned weights.
        limit: the limit the plan was made for, or None.
        kind: what the limit bounds: "density", "parameters", "predicted", "sup", …
        value: what the plan reaches of it.
        feasible: False where no plan meets the limit.
        notes: what the reader should know, such as a minimum that bound.
        rows: the samples that made or verified the plan, where data did.
    """

    kept: Mapping[str, Counts]
    density: float = math.nan
    limit: float | None = None
    kind: str = "density"
    value: float = math.nan
    feasible: bool = True
    notes: tuple[str, ...] = ()
    rows: RowSet | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        met = "" if self.feasible else ", NOT FEASIBLE"
        limit = "" if self.limit is None else f", limit {self.limit:.4g}, reached {self.value:.4g}"
        return (
            f"Plan({len(self.kept)} layers or groups by {self.kind}, density {self.density:.4g}"
            f"{limit}{met}; .kept, .summary())"
        )

    def to_json(self) -> str:
        """The plan as JSON, which `from_json` and `prunus prune --plan` read."""
        facts = {
            "kept": {n: k if isinstance(k, int) else list(k) for n, k in self.kept.items()},
            "density": _finite(self.density),
            "limit": self.limit,
            "kind": self.kind,
            "value": _finite(self.value),
            "feasible": self.feasible,
            "notes": list(self.notes),
            "rows": None if self.rows is None else self.rows.to_text(),
        }
        return json.dumps(facts, indent=1) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: object = "The plan") -> "Plan":
        """The plan that `to_json` or `prunus plan --out` wrote.

        A plan by hand is {"kept": {layer: count, or a list of counts}}.

        Args:
            text: of the file.
            source: its name, for messages.

        Raises:
            ValueError: the text is no such plan; the field that is wrong is named.
        """
        facts = json_object(text, source)
        if not isinstance(facts.get("kept"), dict):
            raise ValueError(
                f'{source} must be a JSON object with an object "kept" of {{layer: count}}, got '
                f"{str(text)[:60]!r}."
            )
        known = [f.name for f in fields(Plan)]
        try:
            for name in facts:
                if name not in known:
                    raise unknown("entry of a plan", name, known)
            for name, counts in facts["kept"].items():
                for count in counts if isinstance(counts, list) else [counts]:
                    whole(f"kept[{name!r}]", count, low=0)
        except ValueError as error:
            said = str(error) if source == "The plan" else f"{source}: {error}"
            raise ValueError(said) from None
        given = validated(facts, _PlanFacts, source)
        return Plan(
            kept={n: tuple(k) if isinstance(k, list) else k for n, k in given.kept.items()},
            density=math.nan if given.density is None else given.density,
            limit=given.limit,
            kind=given.kind,
            value=math.nan if given.value is None else given.value,
            feasible=given.feasible,
            notes=tuple(given.notes),
            rows=given.rows,
        )

    def summary(self) -> str:
        """The plan as text, a line per layer."""
        width = max((len(name) for name in self.kept), default=4)
        lines = [
            f"{name:<{width}}  {_counts(counts)}" for name, counts in sorted(self.kept.items())
        ]
        head = f"plan by {self.kind}: density {self.density:.4g}"
        if self.limit is not None:
            head += f", limit {self.limit:.4g}, reached {self.value:.4g}"
        if not self.feasible:
            head += ", NOT FEASIBLE"
        return "\n".join([head, *lines, *self.notes])

    def _repr_html_(self) -> str:
        rows = [{"layer or group": name, "kept": _counts(own)} for name, own in self.kept.items()]
        return view([*self.summary().splitlines()[:1], *self.notes], [rows])


def _rows(text: object) -> RowSet | None:
    return None if text is None else RowSet.from_text(text)


class _PlanFacts(Schema):
    """A plan as `to_json` writes it; by hand, `kept` alone."""

    kept: dict[str, Any]  # held to whole numbers before
    density: Probability | None = None
    limit: Annotated[float, Field(ge=0)] | None = None
    kind: str = "density"
    value: Spread | None = None
    feasible: bool = True
    notes: list[str] = Field(default_factory=list)
    rows: Annotated[Any, BeforeValidator(_rows)] = None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _counts(counts: Counts) -> str:
    if isinstance(counts, int):
        return str(counts)
    low, high = min(counts), max(counts)
    each = f"{low}" if low == high else f"{low} to {high}"
    return f"{sum(counts)} ({each} in each of {len(counts)} pools)"
