"""Whole numbers of eight bits after pruning, by onnxruntime: exact zeros stay zeros."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunus.export.check import ExportError
from prunus.files import write_bytes

__all__ = ["Int8", "quantized"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Int8:
    """A quantised file.

    Attributes:
        data: of the file.
        zeros_before: share of exact zeros in the matrices before they were rounded.
        zeros_after: the same after it: rounding adds to them.
    """

    data: bytes
    zeros_before: float
    zeros_after: float


def quantized(data: bytes) -> Int8:
    """Weights of matrix products as symmetric eight-bit numbers, one scale for each matrix.

    Symmetric, so that zero is a number of the grid and sparsity survives. Activations are
    quantised as the network runs; they need no calibration.

    Raises:
        ExportError: the file has no matrix product with stored weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from prunus.export.traced import silenced

    with tempfile.TemporaryDirectory() as folder, silenced():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        write_bytes(before, data)
        quantize_dynamic(
            before, after, weight_type=QuantType.QInt8, extra_options={"WeightSymmetric": True}
        )
        small = after.read_bytes()
    old, new = _stored(onnx.load_from_string(data)), _stored(onnx.load_from_string(small))
    pairs = [(old[_origin(key)], value) for key, value in new.items() if _origin(key) in old]
    if not pairs:
        raise ExportError(
            "Nothing of the file was quantised: it has no matrix product with stored weights."
        )
    entries = sum(one.size for one, _ in pairs)
    return Int8(
        data=small,
        zeros_before=sum(int((one == 0).sum()) for one, _ in pairs) / entries,
        zeros_after=sum(int((other == 0).sum()) for _, other in pairs) / entries,
    )


def _origin(name: str) -> str:
    """The name of the matrix that a quantised one was made of; nothing for other tensors."""
    plain, mark, _ = name.partition("_quantized")
    return plain.removesuffix("_Transposed") if mark else ""


def _stored(proto: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
