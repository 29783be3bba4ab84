"""What new weights cost a layer: the mean squared output error on the calibration inputs."""

from jaxtyping import Float
from torch import Tensor

from prunus.layer import Layer

__all__ = ["output_error"]


def output_error(
    layer: Layer,
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    rows: Tensor | None = None,
) -> float | None:
    """E‖(W x + b) − (W′ x + b′)‖², from the statistics alone.

    With inputs from a pruned model (`cross`), E‖(W x_dense + b) − (W′ x + b′)‖².

    Args:
        layer: the layer with its old weights and its statistics.
        weight: W′.
        bias: b′.
        rows: Bool[out], the outputs that count; all where None.

    Returns:
        the error in squared output units, summed over outputs, or None where no Gram matrix was
        collected (or the bias moved and no mean was).
    """
    if layer.gram is None:
        return None
    total = 0.0
    old, new = layer.blocks(), _split(weight, layer.groups)
    shift = None if layer.bias is None or bias is None else _split(bias - layer.bias, layer.groups)
    chosen = None if rows is None else _split(rows, layer.groups)
    for g, part in enumerate(old):
        assert part.gram is not None  # the layer has one, so its blocks do
        w, v = part.weight.to(part.gram), new[g].to(part.gram)
        if part.cross is None or part.dense_gram is None:
            rest = w - v
            errors = ((rest @ part.gram) * rest).sum(1)
            drift = None if part.mean is None else rest @ part.mean
        else:
            errors = ((w @ part.dense_gram) * w).sum(1) - 2 * ((w @ part.cross) * v).sum(1)
            errors = errors + ((v @ part.gram) * v).sum(1)
            means = (part.dense_mean, part.mean)
            drift = None if means[0] is None or means[1] is None else w @ means[0] - v @ means[1]
        counted = None if chosen is None else chosen[g].to(errors.device)
        moved = None if shift is None else shift[g].to(errors)
        if moved is not None and counted is not None:
            moved = moved.masked_fill(~counted, 0.0)
        if moved is not None and bool((moved != 0).any()):
            if drift is None:
                return None
            errors = errors - 2 * moved * drift + moved.square()
        if counted is not None:
            errors = errors[counted]
        total += float(errors.sum())
    return max(total, 0.0)


def _split(values: Tensor, groups: int) -> tuple[Tensor, ...]:
    return values.chunk(groups) if groups > 1 else (values,)
