"""Runs of a model for what its shapes alone decide: products are left out, zeros stand for them.

Which operations run, and on what shapes, depends on numbers only where code asks for them: an
`if` on a sum, positions that are not zero, an array handed to numpy. Nearly all of a forward pass
are its products, and where nothing asks for what has become of them, they need not be made.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from prunus.ambient import unless_interrupted
from prunus.dispatch import Operations, Schema, tensors_in

__all__ = ["WAYS", "by_shapes", "reads_values"]

T = TypeVar("T")
Shape = Sequence[int]

# Functions by which numbers leave torch, after which no one can say what becomes of them.
WAYS: dict[Any, str] = {
    Tensor.numpy: "numpy",
    Tensor.tolist: "tolist",
    Tensor.__array__: "__array__",
    Tensor.__dlpack__: "__dlpack__",
    Tensor.data_ptr: "data_ptr",
}


class _Asked(BaseException):
    """Code asks for numbers that were left out; no `except Exception` of the model's ends it."""


class _Open(threading.local):
    """The run of this thread that leaves products out."""

    found: "_LeftOut | None" = None


_OPEN = _Open()


def by_shapes(run: Callable[[], T]) -> T:
    """What `run` gives without the products of the forward passes in it.

    Its answer must follow from the operations and their shapes. Where any code asks for numbers
    that come of a product, or where it fails, `run` is called once more with all numbers.

    Args:
        run: forward passes, and what looks at them; may be called twice.
    """
    out = _LeftOut()
    before = _OPEN.found
    try:
        _OPEN.found = out
        with _Leaving(), Operations(out.run):
            found = run()
        if not out.asked:
            return found
    except _Asked:
        pass
    except Exception as error:  # maybe by zeros where the model expects something else
        unless_interrupted(error)
    finally:
        _OPEN.found = before
    return run()


def reads_values(tensor: Tensor) -> None:
    """Say that the numbers of a tensor are about to be read where no operation shows it."""
    if _OPEN.found is not None and _OPEN.found.holds(tensor):
        _OPEN.found.ask()


class _LeftOut:
    """Gives zeros for products, and knows which tensors hold numbers that came of them.

    Attributes:
        asked: whether code has asked for such numbers.
    """

    def __init__(self) -> None:
        self.asked = False
        self._kept: dict[int, StorageWeakRef] = {}  # a storage's number is its own as long as these
        self._sweep = 256

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's numbers may come of a product."""
        return tensor.layout != torch.strided or tensor.untyped_storage()._cdata in self._kept

    def ask(self) -> None:
        """Give up: the numbers are needed."""
        self.asked = True
        raise _Asked

    def run(
        self, schema: Schema, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor]
    ) -> Any:
        """What an operation gives, or zeros for it."""
        product = PRODUCTS.get(schema.operation)
        if product is not None:
            zeros = product(*args, **kwargs)
            if zeros is not None:
                self._mark(tensors_in(zeros))
                return zeros
        from_products = any(self.holds(tensor) for tensor in inputs)
        if from_products and self._asks(schema, args, kwargs):
            self.ask()
        result = schema.operation(*args, **kwargs)
        if from_products or product is not None:
            self._mark(tensors_in(result))
            if schema.written:
                named = schema.named(args, kwargs)
                self._mark(tensors_in([named.get(name) for name in schema.written]))
        return result

    def _asks(self, schema: Schema, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether what an operation gives has its shape, or leaves torch, by such numbers."""
        if torch.is_inference_mode_enabled():  # operations come whole, whatever is inside
            return True
        if not _by_values(schema.operation):
            return False
        indices = schema.named(args, kwargs).get("indices")
        if schema.space == "aten" and indices is not None:  # what is taken by them may be any
            return any(self.holds(tensor) for tensor in tensors_in(indices))
        return True

    def _mark(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._kept:
                    self._kept[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if len(self._kept) > self._sweep:
            alive = [k for k in self._kept.items() if not k[1].expired()]  # type: ignore[no-untyped-call]
            self._kept = dict(alive)
            self._sweep = max(256, 2 * len(self._kept))


class _Leaving(TorchFunctionMode):
    """Sees numbers leave torch."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in WAYS and isinstance(args[0], Tensor):
            reads_values(args[0])
        return func(*args, **(kwargs or {}))


# Operations that read numbers of which torch's tags say nothing.
READING = (
    "_assert", "_pack_padded", "_pad_packed", "_to_sparse", "_coalesce", "_nested",
    "segment_reduce",
)  # fmt: skip


@lru_cache(maxsize=4096)
def _by_values(func: OpOverload) -> bool:
    """Whether the shape of what an operation gives, or what it says, may depend on numbers."""
    tags = func.tags
    return (
        torch.Tag.data_dependent_output in tags
        or torch.Tag.dynamic_output_shape in tags
        or func.namespace not in ("aten", "prims")  # a library's own: nobody knows
        or func._schema.name.partition("::")[2].startswith(READING)
    )


# -- what products give; None where that is not plain, or where they would refuse ------------------

Zeros = Tensor | tuple[Tensor, Tensor] | None
KINDS = (Tensor, torch.nn.Parameter)


def _alike(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors of one type on one device."""
    there = [tensor for tensor in tensors if tensor is not None]
    first = there[0]
    return all(
        type(t) in KINDS
        and t.layout == torch.strided
        and t.dtype == first.dtype
        and t.device == first.device
        for t in there
    )


def _mm(a: Tensor, b: Tensor) -> Zeros:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != len(b) or not _alike(a, b):
        return None
    return a.new_zeros(len(a), b.shape[1])


def _addmm(added: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Zeros:
    found = _mm(a, b)
    return found if isinstance(found, Tensor) and _fits(added, found) else None


def _bmm(a: Tensor, b: Tensor) -> Zeros:
    if a.ndim != 3 or b.ndim != 3 or (len(a), a.shape[2]) != b.shape[:2] or not _alike(a, b):
        return None
    return a.new_zeros(len(a), a.shape[1], b.shape[2])


def _baddbmm(added: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Zeros:
    found = _bmm(a, b)
    return found if isinstance(found, Tensor) and _fits(added, found) else None


def _fits(added: Tensor, found: Tensor) -> bool:
    """Whether what is added to a product has its shape, or is broadcast to it."""
    given, wide = added.shape, found.shape[found.ndim - added.ndim :]
    same = all(n in (1, m) for n, m in zip(given, wide, strict=False))
    return added.ndim <= found.ndim and same and _alike(added, found)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape, padding: Shape, dilation: Shape,
    transposed: bool, more: Shape, groups: int,
) -> Zeros:  # fmt: skip
    if x.ndim != weight.ndim or not _alike(x, weight, bias):
        return None
    if not (x.is_contiguous() and weight.is_contiguous()):  # the kernels choose how theirs lies
        return None
    read, made = (len(weight), weight.shape[1] * groups) if transposed else (
        weight.shape[1] * groups, len(weight)
    )  # fmt: skip
    kernels = [d * (n - 1) for d, n in zip(_each(dilation, x), weight.shape[2:], strict=True)]
    axes = zip(x.shape[2:], kernels, *(_each(n, x) for n in (stride, padding, more)), strict=True)
    sizes = [
        (n - 1) * step - 2 * border + kernel + extra + 1
        if transposed
        else (n + 2 * border - kernel - 1) // step + 1
        for n, kernel, step, border, extra in axes
    ]
    if x.shape[1] != read or min(sizes, default=0) < 1 or (bias is not None and len(bias) != made):
        return None
    return x.new_zeros(len(x), made, *sizes)


def _each(numbers: Shape, x: Tensor) -> Shape:
    """One number for each spatial axis; one may stand for all."""
    return [*numbers] * (x.ndim - 2) if len(numbers) == 1 else numbers


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Zeros:
    if not (query.ndim == key.ndim == value.ndim == 4 and _alike(query, key, value)):
        return None
    if key.shape != value.shape or (len(key), key.shape[-1]) != (len(query), query.shape[-1]):
        return None
    blank = [
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
        for t in (query, key, value)
    ]
    found, sums = (
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=query.device).zero_()
        for t in ATTENTION(*blank)  # how it lies differs between versions of torch
    )
    return found, sums


ATEN = torch.ops.aten
ATTENTION = ATEN._scaled_dot_product_flash_attention_for_cpu.default
PRODUCTS: dict[Any, Callable[..., Zeros]] = {
    ATEN.mm.default: _mm,
    ATEN.addmm.default: _addmm,
    ATEN.bmm.default: _bmm,
    ATEN.baddbmm.default: _baddbmm,
    ATEN.convolution.default: _convolution,
    ATTENTION: _attention,
}
