"""Attention: a head is one unit, in its fused form and as products of two activations."""

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Refused, Rule, Trace, spread
from prunus.coupling.labels import DATA, FIRST, narrowed
from prunus.coupling.rules.elementwise import named

__all__ = ["RULES", "product_of_two"]


def fused(trace: Trace, call: Call) -> tuple[Tensor, ...]:
    """Scaled dot-product attention: query, key and value rows of a head go together.

    With fewer key and value heads than query heads, all query heads of a kv head go with it. What
    is added to the scores is not looked at: a removed head's values are zero.
    """
    query, key, value = (call.get(*names) for names in OPERANDS)
    axis = query.ndim - 3
    if axis < 0:
        raise Refused(f"{call.name} without an axis of heads has no rule")
    heads = [
        trace.labels.column(trace.read(tensor), axis, tensor.shape[axis], call.name)
        for tensor in (query, key, value)
    ]
    shared = trace.labels.meet(heads[1], heads[2], call.name)
    shared = shared.repeat_interleave(len(heads[0]) // len(shared))
    found = trace.labels.meet(heads[0], shared, call.name)
    return (spread(found, axis, query.ndim),) + (torch.full((1,), DATA, device="cpu"),) * (
        len(call.outputs) - 1
    )


OPERANDS = (("query", "q"), ("key", "k"), ("value", "v"))


def product_of_two(trace: Trace, left: Tensor, right: Tensor, operation: str) -> Tensor:
    """A (batched) matrix product of two activations.

    Where classes vary along the contracted axis (queries times keys), all classes of one batch
    entry, a head, are one, and the result belongs to it. Where they vary on neither side
    (probabilities times values), the contracted axis counts tokens: the head of the left joins the
    classes of the right, which pass on.
    """
    one, other = trace.read(left), trace.read(right)
    if left.ndim == 1 or right.ndim == 1:
        raise Refused(f"operation {operation} of two computed values has no rule")
    if left.ndim == 2:
        one, other = one[None], other[None]
    one, other = narrowed(trace.labels.find(one)), narrowed(trace.labels.find(other))
    has = [bool((labels >= FIRST).any()) for labels in (one, other)]
    if not any(has):
        return torch.full((1,) * left.ndim, DATA, device="cpu")
    batch = 1 if left.ndim == 2 else left.shape[0]
    if one.shape[2] > 1 or other.shape[1] > 1:
        if not all(has):
            raise Refused(f"{operation} sums over it with values that no removable channel makes")
        left_heads = trace.labels.column(one, 0, batch, operation)
        right_heads = trace.labels.column(other, 0, batch, operation)
        result = spread(trace.labels.meet(left_heads, right_heads, operation), 0, 3)
    else:
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        both = (one >= FIRST) & (other >= FIRST)
        trace.labels.unite(one[both], other[both])
        result = torch.where(other >= FIRST, other, torch.where(one >= FIRST, one, DATA))
    return result[0] if left.ndim == 2 else result


def nothing(trace: Trace, call: Call) -> tuple[Tensor, ...]:
    """The choice of a kernel, which looks at shapes alone."""
    del trace, call
    return ()


RULES: dict[str, Rule] = {
    **named("scaled_dot_product_attention _scaled_dot_product_attention_math", fused),
    **named("_scaled_dot_product_flash_attention_for_cpu", fused),
    **named("_scaled_dot_product_flash_attention _scaled_dot_product_cudnn_attention", fused),
    **named("_scaled_dot_product_efficient_attention", fused),
    **named("_scaled_dot_product_attention_math_for_mps", fused),
    **named("_scaled_dot_product_fused_attention_overrideable", fused),
    **named("_fused_sdp_choice", nothing),
}
