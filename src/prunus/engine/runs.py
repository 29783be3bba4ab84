"""What `compare` says of one run: its metrics, its record, its latency."""

from collections.abc import Mapping

from torch import Tensor, nn

from prunus.budget import Budget, Density, Plan
from prunus.calibration.batches import call, size_of, to_device
from prunus.calibration.place import device_of
from prunus.cost import measure_latency, speedup
from prunus.files import Row
from prunus.hints import Batch, Metrics
from prunus.result import Pruned

__all__ = ["FIELDS", "as_metrics", "latency_of", "numbers_of", "record_of"]

# What a record says beside the metrics, whose names must be others.
FIELDS = frozenset({
    "run", "recipe", "recipe_digest", "density", "density_met", "model_density", "seed",
    "parameters", "parameters_before", "macs", "macs_before", "bytes", "bytes_before",
    "layer_errors", "layer_densities", "seconds", "compact_latency",
})  # fmt: skip


def as_metrics(value: Metrics) -> dict[str, float]:
    """What `evaluate` said, by name.

    Raises:
        TypeError: no numbers.
        ValueError: none at all, or one with the name of a record's own field.
    """
    told = numbers_of(value)
    given = told if isinstance(told, Mapping) else {"metric": told}
    found = {str(key): float(number) for key, number in given.items()}
    taken = {*FIELDS, *(f"{name}_before" for name in found)}
    for name in found:
        if name in taken or f"{name}_before" in FIELDS:
            raise ValueError(
                f"`evaluate` names a metric {name!r}, which is a field of the records. Name it "
                f"otherwise."
            )
    return found


def numbers_of(value: Metrics) -> Metrics:
    """What `evaluate` said, as it said it, held by no graph of gradients.

    Raises:
        TypeError: no number, and no dict of numbers.
        ValueError: an empty dict.
    """
    given = value if isinstance(value, Mapping) else {"metric": value}
    plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}
    try:
        for number in plain.values():
            float(number)
    except (TypeError, ValueError, RuntimeError):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else value
        raise TypeError(
            f"`evaluate` must return a number or a dict of numbers, got {shown}."
        ) from None
    if not plain:
        raise ValueError("`evaluate` returned an empty dict. Give at least one metric.")
    return plain if isinstance(value, Mapping) else plain["metric"]


def record_of(
    label: str,
    density: Density,
    seed: int,
    pruned: Pruned,
    dense: Mapping[str, float],
    after: Mapping[str, float],
    seconds: float,
) -> Row:
    """One pruning, flat."""
    errors = {name: r.error for name, r in pruned.layers.items() if r.error is not None}
    return {
        "recipe": label,
        "recipe_digest": pruned.recipe.digest,
        "density": density if isinstance(density, int | float) else _shown(density),
        "density_met": pruned.cost_after.density,
        "model_density": pruned.cost_after.model_density,
        "seed": seed,
        **{f"{key}_before": value for key, value in dense.items()},
        **after,
        "parameters": pruned.cost_after.parameters,
        "parameters_before": pruned.cost_before.parameters,
        "macs": pruned.cost_after.macs,
        "macs_before": pruned.cost_before.macs,
        "bytes": pruned.cost_after.bytes,
        "bytes_before": pruned.cost_before.bytes,
        "layer_errors": errors,
        "layer_densities": {name: r.density for name, r in pruned.layers.items()},
        "seconds": seconds,
    }


def _shown(density: Density) -> str:
    if isinstance(density, Budget):
        return f"{density.target}={density.value:g}"
    if isinstance(density, Plan):
        return f"plan {density.density:.4g}"
    return str(density)


def latency_of(label: str, density: float, model: nn.Module, pruned: Pruned, example: Batch) -> Row:
    """Latency of the compact network beside the dense one, at the batch sizes 1 and 64 at most."""
    batch = to_device(example, device_of(model))
    smaller = pruned.compact(batch)
    full, small = measure_latency(
        [model, smaller], lambda m: call(m, batch), batch=size_of(batch) or 1
    )
    gain = speedup(full, small)
    return {
        "recipe": label,
        "density": float(density),
        "batch": full.batch,
        "threads": full.threads,
        "dense_seconds": full.median,
        "compact_seconds": small.median,
        "speedup": gain.ratio,
        "speedup_low": gain.low,
        "speedup_high": gain.high,
        "benefit": gain.verdict,
        "parameters": sum(p.numel() for p in smaller.parameters()),
        "parameters_before": sum(p.numel() for p in model.parameters()),
    }
