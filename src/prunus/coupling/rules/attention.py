"""Attention: a head is one unit, in its fused form and as products of two activations."""

import torch
from torch import Tensor

from prunus.coupling.calls import Call, Refused, Rule, Trace, spread
from prunus.coupling.labels import DATA, FIRST, distinct, narrowed, pairs_of
from prunus.coupling.rules.elementwise import named

__all__ = ["RULES", "product_of_two"]

SHARED = "query heads that stay read it, since heads='query' removes some of each kv head's"
IN_ALL = "all heads of the attention read it"


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
        _heads(trace, trace.read(tensor), axis, tensor.shape[axis], call.name)
        for tensor in (query, key, value)
    ]
    shared = [own.repeat_interleave(len(heads[0]) // len(own)) for own in heads[1:]]
    found = heads[0]
    for own in shared:
        found = _joined(trace, found, own, call.name)
    bias = call.get("attn_mask", "attn_bias")
    if bias is not None and bias.ndim > 2 and bool((trace.read(bias) >= FIRST).any()):
        _added(trace, bias, found, call.name)
    return (spread(found, axis, query.ndim),) + (torch.full((1,), DATA, device="cpu"),) * (
        len(call.outputs) - 1
    )


def _added(trace: Trace, bias: Tensor, heads: Tensor, operation: str) -> None:
    """A bias that is added to the scores: what makes a head's goes with the head."""
    axis = bias.ndim - 3
    if bias.shape[axis] != len(heads):
        trace.labels.refuse(trace.read(bias), IN_ALL)
        return
    own = trace.labels.column(trace.read(bias), axis, len(heads), operation)
    both = (own >= FIRST) & (heads >= FIRST)
    trace.labels.unite(own[both], heads[both])
    trace.labels.refuse(own[~both], f"{operation} adds it to heads that stay")


OPERANDS = (("query", "q"), ("key", "k"), ("value", "v"))


def _heads(trace: Trace, labels: Tensor, axis: int, heads: int, operation: str) -> Tensor:
    """One label for each head, which all its entries share.

    Entries that several heads read beside ones of their own (a rotary part that one projection
    makes for all of them) belong to no head, and stay.
    """
    rows = trace.labels.find(labels.movedim(axis, 0))
    if len(rows) == heads > 1 and rows[0].numel() > 1:
        flat = rows.reshape(heads, -1)
        kinds = distinct(flat, dim=0)
        found, _ = pairs_of(*_places(kinds))
        several = found[_counts(found) > 1]
        common = torch.isin(flat, several) & (flat >= FIRST)
        if bool(common.any()) and not bool(common.all(1).any()):
            trace.labels.refuse(flat[common], IN_ALL)
            own = torch.where(common, torch.zeros_like(flat), flat).amax(1, keepdim=True)
            labels = torch.where(common, own, flat).reshape(rows.shape).movedim(0, axis)
    return trace.labels.column(labels, axis, heads, operation)


def _places(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Labels that are classes, and the row each stands in."""
    row = torch.arange(len(rows), device="cpu")[:, None].expand_as(rows)
    fine = rows >= FIRST
    return rows[fine], row[fine]


def _counts(found: Tensor) -> Tensor:
    """For each number how often it occurs."""
    _, place, times = torch.unique(found, return_inverse=True, return_counts=True)
    counts: Tensor = times[place]
    return counts


def _joined(trace: Trace, queries: Tensor, others: Tensor, operation: str) -> Tensor:
    """Labels of heads that read others' keys or values.

    Where one of these serves several query heads and these are the units, it stays.
    """
    if _stay(trace, queries, others):
        return torch.where(queries >= FIRST, queries, others)
    return trace.labels.meet(queries, others, operation)


def _read_by(trace: Trace, heads: Tensor, values: Tensor) -> Tensor:
    """Labels of values that the probabilities of heads weight: a class each, or data."""
    heads, values = torch.broadcast_tensors(heads, values)  # type: ignore[no-untyped-call]
    heads, values = trace.labels.find(heads), trace.labels.find(values)
    first, second = (heads, values) if _stay(trace, heads, values) else (values, heads)
    if first is values:
        both = (heads >= FIRST) & (values >= FIRST)
        trace.labels.unite(heads[both], values[both])
    return torch.where(first >= FIRST, first, torch.where(second >= FIRST, second, DATA))


def _stay(trace: Trace, queries: Tensor, others: Tensor) -> bool:
    """Note which heads read which; True where query heads alone are the units of these."""
    queries, others = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        trace.labels.find(queries), trace.labels.find(others)
    )
    both = (queries >= FIRST) & (others >= FIRST)
    trace.attends(queries[both], others[both])
    if trace.heads != "query" or not bool(both.any()):
        return False
    shared, _ = pairs_of(others[both], queries[both])
    several = shared[_counts(shared) > 1]
    trace.labels.refuse(several, SHARED)
    return len(several) > 0


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
        left_heads = _heads(trace, one, 0, batch, operation)
        right_heads = _heads(trace, other, 0, batch, operation)
        result = spread(_joined(trace, left_heads, right_heads, operation), 0, 3)
    elif all(has):
        result = _read_by(trace, one, other)
    else:
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
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
