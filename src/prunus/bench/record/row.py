"""One row per run: what it was asked to do and what came of it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prunus.check import brief, unknown
from prunus.files import named_numbers, numbers
from prunus.reading import check, validated

__all__ = ["Metrics", "Record", "content_id"]

SCORES = ("before", "after", "retrained", "layer_error", "layer_density")
COUNTS = ("parameters", "macs", "bytes")  # dense and pruned
STATUS = ("done", "failed")
FOREIGN = "The row is no record of prunus"
FORMAT = 1  # raised when a field changes its meaning
Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one pruning run was asked to do and what came of it.

    `id` names the cell: equal ids mean equal work (see `content_id`).

    Attributes:
        id: hash of task, recipe, budget, schedule, seed and version.
        task: the task's or the model's name.
        recipe: the recipe's name in the tables, or its repr.
        recipe_repr: the recipe as Python.
        recipe_hash: its hash over all fields.
        seed: of the pruning's random choices.
        model_seed: of the dense network's training; None where it was given.
        density_asked: kept / total as asked; None for other budgets.
        density: kept / total as met, with design's denominator.
        density_whole: kept / total over all parameters.
        budget: the budget as Python.
        schedule: the schedule as Python.
        before: scores of the dense network.
        after: scores after pruning.
        retrained: scores after retraining; None without.
        layer_error: mean squared output error on the calibration inputs by layer.
        layer_density: kept / total by layer.
        parameters: stored weights, dense and pruned.
        macs: multiply-adds per sample, dense and pruned.
        bytes: storage, dense and pruned.
        latency: of the compact network, with the dense one's and interval; None if not measured.
        seconds: wall time of the run.
        peak_memory: highest resident bytes of the process during the run (on Linux; elsewhere since
            its start); None if unknown.
        certificate: of the run, as JSON; None if not asked for.
        data: fingerprint of the calibration data.
        versions: of prunus, torch, numpy and Python.
        host: of the machine; see `host_facts`.
        status: "done" or "failed".
        traceback: of a failed run.
        extra: whatever else a caller wants kept.
    """

    id: str
    task: str
    recipe: str
    recipe_repr: str
    recipe_hash: str
    seed: int
    density_asked: float | None
    density: float | None
    model_seed: int | None = None
    density_whole: float | None = None
    budget: str = ""
    schedule: str = ""
    before: Metrics = field(default_factory=dict)
    after: Metrics = field(default_factory=dict)
    retrained: Metrics | None = None
    layer_error: Metrics = field(default_factory=dict)
    layer_density: Metrics = field(default_factory=dict)
    parameters: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    latency: Mapping[str, Any] | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    certificate: Mapping[str, Any] | None = None
    data: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    status: str = "done"
    traceback: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def not_finite(self) -> tuple[str, ...]:
        """The scores that are NaN or infinite, such as "after.test_loss"."""
        found = {part: getattr(self, part) or {} for part in ("before", "after", "retrained")}
        return tuple(
            f"{part}.{name}"
            for part, scores in found.items()
            for name, value in scores.items()
            if not math.isfinite(value)
        )

    def to_row(self) -> dict[str, Any]:
        """The record as JSON takes it, with the format's number.

        JSON has no NaN and no infinity: they stand as "NaN", "Infinity" and "-Infinity".
        """
        row: dict[str, Any] = named_numbers({"format": FORMAT, **dataclasses.asdict(self)})
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Record":
        """The record of a row that `to_row` made.

        Raises:
            ValueError: a newer format, or fields that are lacking or unknown.
        """
        values = dict(row)
        number = values.pop("format", None)
        if isinstance(number, bool) or not isinstance(number, int) or number > FORMAT:
            raise ValueError(
                f"The row has format {brief(repr(number))}; this version of prunus reads up to "
                f"{FORMAT}. Update prunus."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{FOREIGN}: {unknown('field', str(name), known)}")
        for name in (*SCORES, "density", "density_whole", "seconds"):
            if name in values:
                values[name] = numbers(values[name])
        found: Record = validated(values, cls, FOREIGN)
        for name in (*COUNTS, "seed", "model_seed", "seconds", "peak_memory"):
            value = getattr(found, name)
            each = value if isinstance(value, tuple) else (value,)
            for number in each:
                check(number is None or not number < 0, FOREIGN, name, f"is {value}.")
        check(found.status in STATUS, FOREIGN, "status", f"is none of {', '.join(STATUS)}.")
        return found


def content_id(**identity: Any) -> str:
    """A hash of the keyword arguments, whatever their order; values are anything JSON takes.

    Example:
        >>> content_id(task="digits-mlp", seed=0) == content_id(seed=0, task="digits-mlp")
        True
    """
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
