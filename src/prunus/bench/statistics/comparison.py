"""Records of a comparison, and what the report draws from records alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import prunus
from prunus.bench.record.row import Record, content_id
from prunus.engine import Comparison
from prunus.files import Row
from prunus.host import host_facts, versions

__all__ = ["latency_rows", "records_of", "report_rows"]


def records_of(
    comparison: Comparison, *, task: str, data: str, model_seed: int | None = None
) -> list[Record]:
    """One `Record` per run of a comparison.

    Args:
        comparison: from `prunus.compare`.
        task: the task's or the network's name.
        data: fingerprint of the calibration data.
        model_seed: seed of the dense network's training, where there is one.
    """
    times = {(t["recipe"], t["density"]): dict(t) for t in comparison.latencies}
    names = list(comparison.dense)
    rows = []
    first: set[tuple[str, Any]] = set()
    for run in comparison.records:
        key = (run["recipe"], run["density"])
        recipe = comparison.recipes[run["recipe"]]
        number = isinstance(run["density"], int | float)
        budget = f"Budget(density={run['density']})" if number else str(run["density"])
        schedule = repr(recipe.schedule)
        rows.append(
            Record(
                id=content_id(
                    task=task,
                    model_seed=model_seed,
                    recipe=recipe.digest,
                    budget=budget,
                    schedule=schedule,
                    seed=run["seed"],
                    data=data,
                    version=prunus.__version__,
                ),
                task=task,
                recipe=run["recipe"],
                recipe_repr=repr(recipe),
                recipe_hash=recipe.digest,
                seed=run["seed"],
                model_seed=model_seed,
                density_asked=float(run["density"]) if number else None,
                density=run["density_met"],
                density_whole=run["model_density"],
                budget=budget,
                schedule=schedule,
                before={n: run[f"{n}_before"] for n in names},
                after={n: run[n] for n in names},
                layer_error=run["layer_errors"],
                layer_density={} if key in first else dict(run["layer_densities"]),
                parameters=_pair(run, "parameters"),
                macs=_pair(run, "macs"),
                bytes=_pair(run, "bytes"),
                latency=times.get(key) if key not in first else None,
                seconds=run["seconds"],
                data=data,
                versions=versions(),
                host=host_facts(),
            )
        )
        first.add(key)
    return rows


def report_rows(records: Sequence[Record], metric: str) -> list[Row]:
    """The rows `prunus.report.comparison.network_section` takes; failed runs are left out.

    Scores are those after retraining where a record has them.
    """
    rows = []
    for record in records:
        if record.status != "done":
            continue
        after = record.retrained or record.after
        rows.append(
            {
                "network": record.task,
                "recipe": record.recipe,
                "density": record.budget if record.density_asked is None else record.density_asked,
                "density_met": record.density,
                "seed": record.seed if record.model_seed is None else record.model_seed,
                "score": after.get(metric),
                "dense": record.before.get(metric),
                "parameters": None if record.parameters is None else record.parameters[1],
                "macs": None if record.macs is None else record.macs[1],
                "nodes": record.recipe_repr.startswith("Recipe(granularity=Node("),
                "layer_density": dict(record.layer_density) or None,
            }
        )
    return rows


def latency_rows(records: Sequence[Record]) -> list[Mapping[str, Any]]:
    """The measured latencies among the records."""
    return [r.latency for r in records if r.latency is not None]


def _pair(run: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    before, after = run[f"{name}_before"], run[name]
    return None if before is None or after is None else (before, after)
