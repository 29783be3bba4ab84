"""Channels that meet numbers of the model's code: sizes of views, positions of slices and others.

Most functions of torch take widths from their tensors, so that a network of them alone works at any
width. `x.view(4, -1)`, `x[:, :16]` or `x.chunk(2)` may hold a number that fits some widths only;
whether a cut fits can then only be tried.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.coupling.labels import FIRST, Labels

__all__ = ["WITHOUT", "Numbers"]

PRODUCTS = """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm bmm
    addmm baddbmm einsum embedding scaled_dot_product_attention __matmul__ __rmatmul__
"""
VALUES = """
    relu relu_ relu6 hardtanh hardtanh_ gelu silu sigmoid sigmoid_ tanh tanh_ elu selu celu mish
    leaky_relu leaky_relu_ hardswish hardsigmoid softplus softsign logsigmoid prelu threshold
    add add_ sub sub_ mul mul_ div div_ neg pow square sqrt rsqrt exp log log1p abs sign clamp
    clamp_ minimum maximum where masked_fill masked_fill_ erf sin cos reciprocal lerp addcmul
    __add__ __iadd__ __radd__ __sub__ __isub__ __rsub__ __mul__ __imul__ __rmul__ __truediv__
    __itruediv__ __rtruediv__ __pow__ __neg__ dropout dropout1d dropout2d dropout3d
    alpha_dropout feature_alpha_dropout softmax log_softmax _softmax type_as to float half
    double bfloat16 clone detach contiguous requires_grad_ copy_ zeros_like ones_like
"""
NORMS = """
    batch_norm instance_norm layer_norm rms_norm group_norm
"""
POSITIONS = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d lp_pool2d mean sum amax amin
"""
AXES = """
    flatten transpose permute t unsqueeze squeeze movedim swapaxes cat concat concatenate stack
    expand expand_as view_as reshape_as broadcast_to
"""
QUESTIONS = """
    dim size __get__ __len__ __bool__ is_floating_point is_complex numel stride is_contiguous
    element_size storage_offset data_ptr get_device __hash__ __repr__ __eq__ eq ne lt le gt ge
"""
# Functions that take no number which could be one of channels.
WITHOUT = frozenset((PRODUCTS + VALUES + NORMS + POSITIONS + AXES + QUESTIONS).split())
# Those that change some axes of a tensor, and leave the others.
ALONG = ("split", "chunk", "tensor_split", "narrow", "index_select", "pad", "interpolate", "repeat",
         "tile")  # fmt: skip
SIZES = ("view", "reshape", "unflatten")


class Numbers:
    """Notes what channels meet while a model runs.

    Attributes:
        anywhere: a number may have met any channel.
    """

    def __init__(
        self, read: Callable[[Tensor], Tensor | None], owned: Callable[[Tensor], bool]
    ) -> None:
        """`read` gives a tensor's labels, if any, `owned` whether it is a view of a parameter."""
        self.anywhere = False
        self._read, self._owned = read, owned
        self._found: list[tuple[Tensor, int | None]] = []

    def note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take in a call of a function that is not among those `WITHOUT` numbers."""
        given = _tensors((args, kwargs))
        whole = args[0] if args and isinstance(args[0], Tensor) else None
        if name in SIZES and whole is not None and isinstance(result, Tensor):
            self._sizes(name, whole, args[1:], kwargs, result)
        elif name in ALONG and whole is not None:
            parts = _tensors(result)
            alike = all(part.ndim == whole.ndim for part in parts)
            for axis, size in enumerate(whole.shape) if alike else ():
                if any(part.shape[axis] != size for part in parts):
                    self._take(whole, axis)
            for tensor in given if not alike else given[1:]:
                self._take(tensor, None)
        elif name == "__getitem__" and whole is not None and len(given) == 1:
            for axis in _indexed(whole, args[1]):
                self._take(whole, axis)
        else:
            for tensor in given:
                self._take(tensor, None)

    def _sizes(
        self, name: str, whole: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], view: Tensor
    ) -> None:
        sizes: Any = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else args
        if name == "unflatten" or kwargs or not all(isinstance(n, int) for n in sizes):
            sizes = view.shape  # however they were said
        for axis, size in enumerate(sizes):
            if size not in (-1, 1):
                self._take(view, axis)

    def _take(self, tensor: Tensor, axis: int | None) -> None:
        if tensor.layout != torch.strided or tensor.numel() <= 1:
            return
        if self._owned(tensor):  # slices of a weight, whose classes are not known yet
            self.anywhere = self.anywhere or axis is None or tensor.shape[axis] > 1
            return
        labels = self._read(tensor)
        if labels is None:
            self.anywhere = True
        elif axis is None or labels.shape[axis] > 1:
            self._found.append((labels, axis))

    def classes(self, labels: Labels) -> Tensor:
        """The classes that have met numbers: those that are not the same all along an axis."""
        met = [torch.empty(0, dtype=torch.int64, device="cpu")]
        for own, axis in self._found:
            roots = labels.find(own)
            is_class = roots >= FIRST
            if axis is not None:
                same = (roots == roots.narrow(axis, 0, 1)).all(axis, keepdim=True)
                is_class = is_class & ~same
            met.append(roots[is_class])
        return labels.of(met)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in _tensors(part)]
    return []


def _indexed(whole: Tensor, index: Any) -> list[int]:
    """The axes along which an index takes some positions."""
    parts = index if isinstance(index, tuple) else (index,)
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    axis, found = 0, []
    for part in parts:
        if part is None:
            continue
        if part is Ellipsis:
            axis += whole.ndim - taken
            continue
        if part != slice(None):
            found.append(axis)
        axis += 1
    return found
