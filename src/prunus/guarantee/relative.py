"""What is said of every layer by itself, relative to the sums that its outputs are made of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunus.calibration import Calibration, calibrate
from prunus.guarantee.draws import Drawn, drawn_units
from prunus.guarantee.moved import Change, Fresh, Seen, changes_of, fresh_errors
from prunus.theory.gap.held_out import held_out_quantile, sample_size_for_quantile
from prunus.theory.gap.shares import drawn_error, exceeding, known_error
from prunus.theory.gap.statement import Kind, Statement

__all__ = ["layer_statements"]

LEVEL = 0.95  # of the held-out quantile
SLACK = 1e-9  # relative, for sums in float64
ALONE = (
    "of a layer by itself, at the inputs that the dense network gives it, without biases of its own"
)
FEW = (
    "one sample alone calibrated the shares: any share of a fresh input is larger with probability "
    "up to 50 %"
)
COVERED = "no share of these inputs exceeds the largest of the calibration inputs"


def layer_statements(
    model: nn.Module,
    thin: nn.Module,
    pruned: Any,
    calibration: Any,
    read: Sequence[Any],
    delta: float,
    in_sample: bool,
) -> tuple[tuple[Statement, ...], tuple[str, ...]]:
    """Statements about the layers whose weights changed, and what should be known beside.

    Args:
        model: the dense network.
        thin: the pruned network, of equal structure.
        pruned: what the user gave for it; a `Pruned` knows how it was drawn.
        calibration: batches, or a `Calibration` with the statistic "share".
        read: fresh batches, or none.
        delta: of each statement.
        in_sample: the fresh batches made the pruning.

    Raises:
        ValueError: a calibration without shares or of other weights, unfit batches.
    """
    changes, left = changes_of(model, thin, _units(pruned))
    if isinstance(calibration, Calibration):
        known = {name: change for name, change in changes.items() if name in calibration}
        _same(calibration, known)
        found = calibration
    else:
        known = changes
        if changes:
            found = calibrate(
                model, calibration, ("share", Seen(changes)), layers=list(changes), progress=False
            )
    if not known:
        return (), tuple(_left(left)) or ("no layer's weights changed",)
    fresh = fresh_errors(model, known, read)
    statements: list[Statement] = []
    for name, change in known.items():
        if name not in found or "share" not in found[name].statistics:
            left.append(name)  # it never ran, or does not show what it multiplies
            continue
        own = found[name]
        share = own.statistic("share").cpu()
        seen = own.statistics.get("relative")
        drawn = drawn_units(pruned, own, change, share)
        statements += _of_layer(
            name, change, share, None if seen is None else seen.flatten()[:2].tolist(),
            fresh.get(name), (own.samples, found.samples), drawn, delta, in_sample,
        )  # fmt: skip
    left += [name for name in changes if name not in known]
    few = (FEW,) if found.samples == 1 else ()
    return tuple(statements), (*few, *_left(left), *_conditions(fresh))


def _of_layer(
    name: str,
    change: Change,
    share: Tensor,
    seen: list[float] | None,
    fresh: Fresh | None,
    counts: tuple[int, int],
    drawn: Drawn | None,
    delta: float,
    in_sample: bool,
) -> list[Statement]:
    """Everything about one layer; `counts` are those of the vectors and samples that calibrated."""
    live, (vectors, samples) = change.live, counts
    # `max_positions` draws patches of every sample, and a fresh one has more of them.
    all_of_them = "" if vectors == samples else ", if all positions calibrated"
    bound = known_error(change.weight, change.new, share)[live].amax(1) * (1 + SLACK)
    if change.shift is not None and bool((change.shift[live] != 0).any()):
        bound = torch.full_like(bound, torch.inf)
    most = _most(change)
    made = []
    kinds: tuple[tuple[Kind, Tensor, Tensor], ...] = (
        ("relative", bound.max(), most.max()),
        ("relative_mean", bound.mean(), most.mean()),
    )
    for place, (kind, value, limit) in enumerate(kinds):
        vacuous, reason = _judged(float(value), float(limit), change)
        values = None if fresh is None else torch.cat([fresh.largest, fresh.mean][place])
        common: dict[str, Any] = {"kind": kind, "layer": name, "trivial": float(limit)}
        made.append(
            Statement(
                status="RIG", level="L3", value=float(value), route="shares of the weights",
                measured=None if seen is None else seen[place], vacuous=vacuous, reason=reason,
                assumptions=(
                    f"{ALONE}; of the {vectors} vectors of {samples} calibration inputs alone",
                ), **common,
            )
        )  # fmt: skip
        made.append(
            Statement(
                status="PRED", level="L3", value=float(value), route="shares, for fresh inputs",
                measured=None if values is None else float(values.max()),
                vacuous=vacuous, reason=reason,
                assumptions=(
                    f"{COVERED}; each does with probability at most {exceeding(samples):.2g} over "
                    f"the draw of both{all_of_them}",
                ),
                in_sample=in_sample and values is not None, **common,
            )
        )  # fmt: skip
        if values is not None and len(values) >= sample_size_for_quantile(LEVEL, delta):
            made.append(_held_out(values, delta, in_sample, float(limit), common))
    if drawn is not None:
        reach = float(drawn_error(*drawn, delta)[live].max()) * (1 + SLACK)
        vacuous = not reach < 1
        made.append(
            Statement(
                kind="relative", layer=name, status="RIG", level="L2", value=reach,
                route="Bernstein over the draw", delta=delta, vacuous=vacuous,
                reason="it is no smaller than the sums themselves" if vacuous else "",
                ledger=((f"{name}: all {int(live.sum())} outputs at one fixed vector", delta),),
                assumptions=(
                    f"{ALONE}; for any one input vector (of a convolution, a patch) that is fixed "
                    f"before the draw and whose shares are within those of the calibration inputs",
                ),
            )
        )  # fmt: skip
    return made


def _held_out(
    values: Tensor, delta: float, in_sample: bool, limit: float, common: Mapping[str, Any]
) -> Statement:
    """What fresh inputs prove, whatever their shares."""
    value = held_out_quantile(values.clamp(max=1e300), LEVEL, delta)
    return Statement(
        status="PRED" if in_sample else "RIG",
        level="held-out",
        value=value,
        route="order statistic",
        delta=0.0 if in_sample else delta,
        ledger=() if in_sample else ((f"order statistic of {len(values)} inputs", delta),),
        measured=float(values.quantile(LEVEL)),
        argument=LEVEL,
        in_sample=in_sample,
        vacuous=value >= limit,
        reason=f"it is no smaller than {limit:.3g}, which holds for any input"
        if value >= limit else "",
        assumptions=("made on calibration inputs",) if in_sample else (
            "the inputs are independent, fresh, and were not used to train, choose or plan the "
            "mask",
        ),
        **common,
    )  # fmt: skip


def _most(change: Change) -> Float[Tensor, " live"]:
    """What holds for any input whatever: no error exceeds the largest |w' − w| / |w| of its row."""
    w, v = change.weight, change.new
    ratio = torch.where(w == v, 0.0, (v - w).abs() / w.abs())
    return ratio.amax(1)[change.live]


def _judged(value: float, limit: float, change: Change) -> tuple[bool, str]:
    if value == float("inf"):
        moved = change.shift is not None
        what = "a bias moved" if moved else "a weight that was 0 is not any more"
        return True, f"{what}, which no share covers"
    if value >= limit:
        return True, f"it is no smaller than {limit:.3g}, which holds for any input"
    return False, ""


def _units(pruned: Any) -> str | None:
    return getattr(getattr(pruned, "recipe", None), "units", None)


def _same(calibration: Calibration, changes: Mapping[str, Change]) -> None:
    for name, change in changes.items():
        layer = calibration[name]
        layer.require("share")
        if not torch.equal(layer.weight.cpu().double(), change.weight):
            raise ValueError(
                f"`calibration` has other weights of layer {name!r} than the dense model. "
                f"Calibrate the model that was pruned: calibrate(model, data, 'share')."
            )


def _left(names: Sequence[str]) -> list[str]:
    """What the statements leave out."""
    if not names:
        return []
    return [f"no statement by itself of {', '.join(names)}: no shares of its weights"]


def _conditions(fresh: Mapping[str, Fresh]) -> list[str]:
    """Why the statements are not multiplied through the layers."""
    active = {n: own.conditions[0] for n, own in fresh.items() if len(own.conditions[0])}
    factors = {name: float(values.median()) for name, values in active.items()}
    if not factors:
        return []
    return [
        "errors by layer are relative to Σ|w||x|, which exceeds |z| at the median by "
        + ", ".join(f"{factor:.2g} ({name})" for name, factor in factors.items())
        + f"; through all layers these multiply ({math.prod(factors.values()):.2g}), so that no "
        f"statement about the network is made of them"
    ]
