"""Statements about the gap, and the certificate that holds them together."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from prunus.notebook import histogram, view
from prunus.reading import Probability, Schema, read_json, validated
from prunus.theory.gap.words import SHOWN, headline, rows_of, text_of

__all__ = [
    "Certificate",
    "InSampleWarning",
    "Statement",
    "UnsoundError",
    "VacuousWarning",
    "judge",
    "warn_in_sample",
    "warn_vacuous",
]

Gap = Annotated[float, Field(ge=0)]
Kind = Literal[
    "sup", "mean_square", "predicted", "changed", "exceeds", "quantile", "mean",
    "relative", "relative_mean",
]  # fmt: skip
Status = Literal["RIG", "RIG/MC", "PRED"]
Event = tuple[str, Probability]
WORDS = {"RIG": "bound", "RIG/MC": "bound (simulated confidence)", "PRED": "prediction"}


class UnsoundError(RuntimeError):
    """A rigorous value is below what was measured: a fault of prunus, never of its user."""


class InSampleWarning(UserWarning):
    """Statements made on inputs that calibrated or planned: they guarantee nothing."""


class VacuousWarning(UserWarning):
    """A bound is true but says nothing: it is no smaller than what holds without looking."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One statement about the gap between a network and its pruned form.

    Attributes:
        kind: what is bounded: "sup" over the ball, "mean_square" (as a root), "predicted" (root
            mean square), "changed" predictions; among held-out statements also "exceeds",
            "quantile" and "mean"; of one layer, "relative" and "relative_mean": the largest and
            the mean over outputs of |z' − z| / Σ|w||x|.
        status: "RIG" theorem, "RIG/MC" theorem with simulated confidence, "PRED" prediction.
        level: "L1" before training, "L2" before the mask is drawn, "L3" weights and mask known,
            "held-out".
        value: the bound or the prediction.
        route: the formula that won.
        delta: total probability that the statement fails; 0 for a deterministic one.
        ledger: (event, share of delta).
        measured: the same quantity measured, or None.
        relative: `value` and `measured` are shares of rms ‖F‖.
        trivial: what holds without looking at the difference of the networks, or None.
        vacuous: `value` says nothing.
        reason: why it is vacuous, in words; empty otherwise.
        assumptions: in words.
        in_sample: made on data that calibrated or planned; no guarantee.
        argument: the threshold t or the level of the quantile, where there is one.
        layer: the layer that it is about; empty for the network's outputs.
    """

    kind: Kind
    status: Status
    level: str
    value: float
    route: str
    delta: float = 0.0
    ledger: tuple[tuple[str, float], ...] = ()
    measured: float | None = None
    relative: bool = False
    trivial: float | None = None
    vacuous: bool = False
    reason: str = ""
    assumptions: tuple[str, ...] = ()
    in_sample: bool = False
    argument: float | None = None
    layer: str = ""

    def __post_init__(self) -> None:
        """Refuse a rigorous value below what was measured: nobody may read it as a bound.

        Statements about one draw of weights or masks (δ > 0, not from fresh data) may fail with
        probability δ and are not refused.

        Raises:
            UnsoundError: the route is named.
        """
        sure = self.status != "PRED" and (self.delta == 0 or self.level == "held-out")
        if sure and self.measured is not None and not self.value >= self.measured:
            raise UnsoundError(
                f"internal error: the {self.kind} bound {self.value:.6g} ({self.level}, "
                f"{self.route}) is below the {self.measured:.6g} that was measured. It is no bound "
                f"and is not handed out. Please report the network to the authors of prunus."
            )

    @property
    def tightness(self) -> float | None:
        """value / measured: how many times the bound exceeds what was seen."""
        if self.measured is None:
            return None
        if self.measured == 0:
            return 1.0 if self.value == 0 else math.inf
        return self.value / self.measured

    def summary(self) -> str:
        """One line: what, how sure, measured, how tight."""
        sign = "≈" if self.status == "PRED" else "≤"
        what = f"{self.layer}: {SHOWN[self.kind]}" if self.layer else SHOWN[self.kind]
        if self.argument is not None:
            what += f" ({self.argument:.4g})"
        text = f"{what} {sign} {self.value:.4g} [{WORDS[self.status]}, {self.level}, {self.route}"
        text += f", δ = {self.delta:.3g}]" if self.delta else "]"
        if self.measured is not None:
            text += f"; measured {self.measured:.4g}, ratio {self.tightness:.3g}"
        if self.in_sample:
            text += "; IN-SAMPLE, no guarantee"
        if self.vacuous:
            text += f"; VACUOUS: {self.reason}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """All fields and the tightness, ready for JSON (∞ and NaN become None)."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["tightness"] = self.tightness
        fields["ledger"] = [list(entry) for entry in self.ledger]
        fields["assumptions"] = list(self.assumptions)
        return {key: _plain(value) for key, value in fields.items()}

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> "Statement":
        """The statement that `to_dict` wrote; a value that it left out is ∞.

        Raises:
            ValueError: a field is missing, or not what `to_dict` writes; it is named.
        """
        return _statement(validated(dict(given), _StatementFacts, "The statement"), "The statement")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _unbounded(value: float | None) -> float:
    return math.inf if value is None else value


def judge(value: float, trivial: float | None, scale: float | None) -> tuple[bool, str]:
    """Whether a bound is vacuous, and why in words."""
    if math.isinf(value):
        return True, "no finite bound exists for this network"
    if trivial is not None and trivial > 0 and value >= trivial:
        return True, f"it is no smaller than {trivial:.4g}, which holds for any pruning"
    if scale is not None and value >= scale:
        return True, f"it is no smaller than the outputs themselves (rms {scale:.4g})"
    return False, ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """What is known of the gap between a network and its pruned form.

    Attributes:
        statements: every statement of kinds sup, mean_square, predicted and changed.
        held_out: further statements from data (exceeds, quantile, mean).
        per_layer: name → {"dense": w, "pruned": v, "difference": Δ, "contribution": share of the
            sup bound that the layer's own difference carries, in output units}.
        layers: statements about single layers, relative to their sums; see `certify`.
        gaps: measured gap per sample, for the histogram.
        radius: of the input ball, or None.
        notes: in words.
        cautions: what the reader must know before anything else.
    """

    statements: tuple[Statement, ...]
    held_out: tuple[Statement, ...] = ()
    per_layer: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    layers: tuple[Statement, ...] = ()
    gaps: tuple[float, ...] = ()
    radius: float | None = None
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The strongest sup bound; ∞ where the network has none."""
        bounds = [s.value for s in self.statements if s.kind == "sup" and s.status != "PRED"]
        return min(bounds, default=math.inf)

    @property
    def ledger(self) -> tuple[tuple[str, float], ...]:
        """Every probability event of every statement with its share."""
        together = (*self.statements, *self.held_out, *self.layers)
        return tuple(entry for statement in together for entry in statement.ledger)

    def of(self, kind: Kind) -> tuple[Statement, ...]:
        """The statements of one kind."""
        every = (*self.statements, *self.held_out, *self.layers)
        return tuple(s for s in every if s.kind == kind)

    def summary(self) -> str:
        """What is of use in one sentence, then all statements side by side, as text."""
        return text_of(self)

    def _repr_html_(self) -> str:
        rows = rows_of([*self.statements, *self.held_out])
        gaps = histogram(self.gaps, "gap, in units of the output") if self.gaps else ""
        return view([*self.cautions, headline(self)], [rows], pictures=[gaps])

    def to_json(self) -> str:
        """Everything but the raw gaps' order, as a JSON text."""
        value = {
            "value": _plain(self.value),
            "radius": self.radius,
            "statements": [s.to_dict() for s in self.statements],
            "held_out": [s.to_dict() for s in self.held_out],
            "layers": [s.to_dict() for s in self.layers],
            "ledger": [list(entry) for entry in self.ledger],
            "per_layer": {
                name: {key: _plain(v) for key, v in row.items()}
                for name, row in self.per_layer.items()
            },
            "gaps": list(self.gaps),
            "notes": list(self.notes),
            "cautions": list(self.cautions),
        }
        return json.dumps(value, indent=1, ensure_ascii=False)

    @staticmethod
    def from_json(text: str | bytes, source: object = "the text") -> "Certificate":
        """The certificate that `to_json` wrote.

        Args:
            text: of the file.
            source: its name, for messages.

        Raises:
            ValueError: the text is no such certificate; the field that is wrong is named.
        """
        told = f"{source} is no certificate as `to_json` writes it"
        given = read_json(text, _CertificateFacts, told)
        return Certificate(
            statements=tuple(_statement(facts, told) for facts in given.statements),
            held_out=tuple(_statement(facts, told) for facts in given.held_out),
            layers=tuple(_statement(facts, told) for facts in given.layers),
            per_layer={
                name: {key: _unbounded(v) for key, v in row.items()}
                for name, row in given.per_layer.items()
            },
            gaps=tuple(given.gaps),
            radius=given.radius,
            notes=tuple(given.notes),
            cautions=tuple(given.cautions),
        )


class UnsoundFile(UnsoundError, ValueError):
    """A certificate that was read says that a rigorous value is below what was measured."""


class _StatementFacts(Schema):
    """A statement as `to_dict` writes it."""

    kind: Kind
    status: Status
    level: Literal["L1", "L2", "L3", "held-out"]
    value: Gap | None
    route: str
    delta: Probability = 0.0
    ledger: list[Event] = Field(default_factory=list)
    measured: Gap | None = None
    relative: bool = False
    trivial: Gap | None = None
    vacuous: bool = False
    reason: str = ""
    assumptions: list[str] = Field(default_factory=list)
    in_sample: bool = False
    argument: Gap | None = None
    layer: str = ""


class _CertificateFacts(Schema):
    """A certificate as `to_json` writes it."""

    statements: list[_StatementFacts]
    held_out: list[_StatementFacts]
    layers: list[_StatementFacts] = Field(default_factory=list)
    per_layer: dict[str, dict[str, Gap | None]]
    gaps: list[Gap]
    radius: Gap | None
    notes: list[str]
    cautions: list[str] = Field(default_factory=list)


def _statement(facts: _StatementFacts, source: str) -> Statement:
    values = dict(facts)
    values["value"] = _unbounded(facts.value)
    values["ledger"] = tuple(facts.ledger)
    values["assumptions"] = tuple(facts.assumptions)
    try:
        return Statement(**values)
    except UnsoundError as error:
        raise UnsoundFile(f"{source}: {error}") from None


def warn_in_sample() -> None:
    """One line where the held-out statements rest on inputs that calibrated or planned."""
    warnings.warn(
        "these inputs calibrated or planned the pruning: statements from them are in-sample and "
        "guarantee nothing. Certify on fresh inputs.",
        InSampleWarning,
        stacklevel=3,
    )


def warn_vacuous(statements: Sequence[Statement]) -> None:
    """One line for the first vacuous statement that is presented as a bound."""
    for statement in statements:
        if statement.vacuous and statement.status != "PRED":
            warnings.warn(
                f"the {statement.kind} bound is vacuous: {statement.reason}. See the prediction "
                f"or the held-out statements instead.",
                VacuousWarning,
                stacklevel=3,
            )
            return
