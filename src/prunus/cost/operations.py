"""Multiply-adds counted operation by operation while a model runs once.

Counted are the operations whose work is a sum of products: matrix products, convolutions,
attention's scores and values, the gates of recurrent layers. Everything that works on each value
by itself (norms, activations, pooling, sums, look-ups in embeddings) counts as nothing, as is
usual. An operation that multiplies and has no formula here is named, never guessed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunus.ambient import uncompiled
from prunus.dispatch import Ran, Schema, followed
from prunus.shapes import by_shapes

__all__ = ["Operations", "count_operations"]


@dataclass(frozen=True, kw_only=True)
class Operations:
    """The multiply-adds of one sample.

    Attributes:
        uses: {parameter: how often one sample multiplies by each of its entries}, an average over
            the entries where parts of it are used unlike others.
        other: multiply-adds between computed values, such as attention's scores.
        missing: operations that multiply and could not be counted.
    """

    uses: Mapping[str, float]
    other: float
    missing: tuple[str, ...] = ()


def _product(a: Tensor, b: Tensor) -> int:
    """Matrix product, batched or not."""
    return a.numel() * b.shape[-1] if b.ndim > 1 else a.numel()


def _convolution(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    reads = x if transposed else out  # each of its entries meets one slice of the weight
    return reads.numel() * math.prod(weight.shape[1:])


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _steps(inputs: Tensor) -> int:
    return inputs.shape[:-1].numel()


# What an operation multiplies: numbers of products, each with the tensors of which one may be a
# parameter. A formula gets the operation's first output, then its arguments.
Products = list[tuple[int, tuple[Any, ...]]]


def _of_product(out: Tensor, a: Tensor, b: Tensor, *_: Any) -> Products:
    return [(_product(a, b), (a, b))]


def _of_added_product(out: Tensor, added: Tensor, a: Tensor, b: Tensor, *_: Any) -> Products:
    return [(_product(a, b), (a, b))]


def _of_linear(out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> Products:
    return [(x.numel() * len(weight), (x, weight))]


def _of_convolution(
    out: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool = False, *_: Any,
) -> Products:  # fmt: skip
    return [(_convolution(x, weight, out, transposed), (x, weight))]


def _of_time_convolution(out: Tensor, x: Tensor, weight: Tensor, *_: Any) -> Products:
    return [(_steps(out) * weight.numel(), (x, weight))]


def _of_trilinear(out: Tensor, a: Tensor, weight: Tensor, *_: Any) -> Products:
    return [(_steps(a) * weight.numel(), (weight,))]


def _of_outer(out: Tensor, added: Tensor, a: Tensor, b: Tensor, *_: Any) -> Products:
    return [(a.numel() * b.numel(), (a, b))]


def _of_attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Products:
    return [(_attention(query, key, value), ())]


def _of_recurrent_layer(out: Tensor, x: Tensor, wide: Tensor, deep: Tensor, *_: Any) -> Products:
    return [(_steps(x) * w.numel(), (w,)) for w in (wide, deep)]


def _of_recurrent(out: Tensor, x: Tensor, weights: Any, *_: Any) -> Products:
    return [(_steps(x) * w.numel(), (w,)) for w in weights if w.ndim > 1]


FORMULAS: dict[str, Callable[..., Products]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm"), _of_product),
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm"), _of_added_product),
    "addr": _of_outer,
    "linear": _of_linear,
    "convolution": _of_convolution,
    "conv_tbc": _of_time_convolution,
    "_trilinear": _of_trilinear,
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_attention_math_for_mps",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _of_attention,
    ),
    "mkldnn_rnn_layer": _of_recurrent_layer,
    **dict.fromkeys(("_cudnn_rnn", "miopen_rnn"), _of_recurrent),
}  # fmt: skip

# Operations that multiply and add, for which there is no formula.
UNCOUNTED = (
    "_cdist_forward", "_euclidean_dist", "_fft_", "_sparse_", "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention", "_flash_attention_forward", "_efficient_attention_forward",
    "_grouped_mm", "linalg_", "_linalg_", "cholesky", "inverse", "_addmm_activation", "_weight_int",
    "flex_attention",
    "_thnn_differentiable", "quantized_lstm", "quantized_gru", "_scaled_grouped_mm", "grid_sampler",
)  # fmt: skip
CHEAP = ("linalg_vector_norm", "_linalg_check_errors", "linalg_matrix_norm", "linalg_cross")
COPIES = ("_to_copy", "clone", "contiguous")


@dataclass
class _Count:
    """What has been counted so far."""

    used: dict[str, float] = field(default_factory=dict)
    other: float = 0.0
    missing: dict[str, None] = field(default_factory=dict)


class _Counter:
    """Counts every operation below autograd."""

    def __init__(self, model: nn.Module) -> None:
        self.count = _Count()
        self._names: dict[int, list[tuple[str, Tensor]]] = {}
        self._kept: list[Tensor] = []
        for name, parameter in model.named_parameters():
            self._know(parameter, name)

    def _know(self, tensor: Tensor, name: str) -> None:
        self._names.setdefault(_storage(tensor), []).append((name, tensor))
        self._kept.append(tensor)  # its storage is not given to another tensor meanwhile

    def _name_of(self, tensor: Any) -> str | None:
        """The parameter that a tensor is a view or a copy of."""
        if not isinstance(tensor, Tensor):
            return None
        known = self._names.get(_storage(tensor), [])
        if len(known) < 2:
            return known[0][0] if known else None
        start = tensor.storage_offset()  # several in one storage, as cuDNN packs them
        for name, whole in known:
            if whole.storage_offset() <= start < whole.storage_offset() + max(whole.numel(), 1):
                return name
        return None

    def ran(self, call: Ran) -> None:
        """Count an operation that has run."""
        schema, args, result = call.schema, call.args, call.result
        space, name = schema.space, schema.name
        formula = FORMULAS.get(name) if space == "aten" else None
        if formula is not None:
            first = result[0] if isinstance(result, tuple | list) else result
            for products, tensors in formula(first, *_in_order(schema, args, call.kwargs)):
                self._add(products, tensors)
        elif space == "aten" and name in COPIES:
            source = self._name_of(args[0])
            if source is not None and result.numel() == args[0].numel():
                self._know(result, source)
        elif _multiplies(space, name, args):
            self.count.missing[f"{space}.{name}"] = None

    def _add(self, products: int, tensors: tuple[Any, ...]) -> None:
        named = [name for t in tensors if (name := self._name_of(t)) is not None]
        if len(named) == 1:
            self.count.used[named[0]] = self.count.used.get(named[0], 0.0) + products
        else:  # computed values alone, or a product of two parameters
            self.count.other += products


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (RuntimeError, NotImplementedError):  # sparse and other tensors without one
        return -id(tensor)


def _in_order(schema: Schema, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """All positional arguments in the order of the schema, whether given by name or not."""
    given = schema.named(args, kwargs)
    return [given[name] for name in schema.positional if name in given]


def _multiplies(space: str, name: str, args: Any) -> bool:
    """True for an operation without a formula that multiplies, or may: a library's own."""
    if space in ("aten", "prim", "prims", "profiler"):
        return name.startswith(UNCOUNTED) and name not in CHEAP
    return any(isinstance(a, Tensor) and a.is_floating_point() for a in tree_leaves(args))


def count_operations(
    model: nn.Module, run: Callable[[], int], *, outputs: bool = True
) -> Operations:
    """Count the multiply-adds of one call.

    Args:
        model: the network, for the names of its parameters.
        run: makes one forward call and returns its number of samples.
        outputs: False where nobody wants what the call gives: products are left out of it then,
            and it is made once more where code asks for them.
    """

    def counted() -> tuple[_Count, int]:
        counter = _Counter(model)

        def inside() -> int:
            with followed(counter):
                return run()

        return counter.count, uncompiled(inside)

    count, batch = counted() if outputs else by_shapes(counted)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Operations(
        uses={name: used / batch / sizes[name] for name, used in count.used.items()},
        other=count.other / batch,
        missing=tuple(sorted(count.missing)),
    )
