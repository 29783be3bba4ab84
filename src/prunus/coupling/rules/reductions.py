"""Operations that mix positions: pooling, resampling, means, extrema, softmax, scans."""

import math

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Rule, Trace
from prunus.coupling.labels import FIRST, distinct
from prunus.coupling.rules.elementwise import named

__all__ = ["RULES"]


def spatial(trace: Trace, call: Call) -> Tensor:
    """Pooling and resampling: mix positions of the trailing axes, which the name counts."""
    labels = trace.read(call.tensors()[0])
    stem = call.name.removesuffix("_with_indices").removesuffix("_aa")
    rank = next(int(c) for c in reversed(stem[:-1]) if c.isdigit())
    return trace.labels.merge(labels, range(-rank, 0), call.name)


def reduction(trace: Trace, call: Call) -> Tensor | tuple[Tensor, ...]:
    """Means, sums and extrema over axes along which the class stays the same."""
    labels = trace.read(call.tensors()[0])
    dims = call.get("dim", "axis")
    if dims is None or dims == []:
        dims = range(labels.ndim)
    axes = [dims] if isinstance(dims, int) else list(dims)
    merged = _statistic(trace, labels, axes) if call.name in STATISTICS else None
    if merged is None:
        merged = trace.labels.merge(labels, axes, call.name)
    axes = [a % labels.ndim for a in axes] if labels.ndim else []
    if call.out.ndim != labels.ndim:
        merged = merged.reshape([n for a, n in enumerate(merged.shape) if a not in axes])
    return (merged,) * len(call.outputs)


STATISTICS = ("aten.mean", "aten.sum", "aten.linalg_vector_norm")


def _statistic(trace: Trace, labels: Tensor, axes: list[int]) -> Tensor | None:
    """Labels of a number per sample computed from several classes; None where they are not so.

    A norm by hand scales each class by such a number. What else it goes into, refuses them.
    """
    if not labels.ndim:
        return None
    mixed = sorted({a % labels.ndim for a in axes})
    rest = [a for a in range(labels.ndim) if a not in mixed]
    roots = trace.labels.find(labels).permute((*rest, *mixed))
    shape = [roots.shape[i] for i in range(len(rest))]
    rows = roots.reshape(math.prod(shape), -1)
    if rows.shape[1] == 1 or bool((rows < FIRST).any()) or bool((rows == rows[:, :1]).all()):
        return None
    trace.labels.shared.append(rows)
    numbers = [trace.labels.statistic(distinct(row)) for row in rows]
    return torch.tensor(numbers, device="cpu").reshape(
        [1 if a in mixed else labels.shape[a] for a in range(labels.ndim)]
    )


def scan(trace: Trace, call: Call) -> Tensor | tuple[Tensor, ...]:
    """Scans, sorts and softmax: harmless along an axis on which the class stays the same."""
    labels = trace.read(call.tensors()[0])
    axis = call.get("dim")
    merged = trace.labels.merge(labels, [-1 if axis is None else axis], call.name)
    return (merged,) * len(call.outputs)


RULES: dict[str, Rule] = {
    **named("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", spatial),
    **named("avg_pool1d avg_pool2d avg_pool3d", spatial),
    **named("_adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d", spatial),
    **named("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", spatial),
    **named("fractional_max_pool2d fractional_max_pool3d", spatial),
    **named("upsample_nearest1d upsample_nearest2d upsample_nearest3d", spatial),
    **named("_upsample_nearest_exact1d _upsample_nearest_exact2d", spatial),
    **named("_upsample_nearest_exact3d upsample_linear1d", spatial),
    **named("upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d", spatial),
    **named("_upsample_bilinear2d_aa _upsample_bicubic2d_aa", spatial),
    **named("mean sum amax amin max min var std prod logsumexp var_mean std_mean", reduction),
    **named("argmax argmin any all median nanmedian linalg_vector_norm norm", reduction),
    **named("_softmax _log_softmax softmax log_softmax _safe_softmax", scan),
    **named("cumsum cumprod cummax cummin logcumsumexp sort topk kthvalue mode", scan),
}
