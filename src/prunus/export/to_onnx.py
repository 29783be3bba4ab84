"""ONNX files, checked and timed in onnxruntime."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.export.answer import Check
from prunus.export.check import ExportError, compared, output_of
from prunus.export.int8 import Int8, quantized
from prunus.export.job import Engine, Job, Written, needs_example, shipped
from prunus.export.traced import Trace, batches_for, silenced, traced
from prunus.files import write_bytes
from prunus.hints import Batch

__all__ = ["model_bytes", "session", "write_onnx"]

LIMIT = 1e-4  # of the largest output, in single precision; measured 3e-7 to 1e-6
HALF_LIMIT = 1e-2  # both engines round each operation to 10 bits
LARGEST = 2**31 - 2**20  # bytes of one file of protocol buffers


def write_onnx(job: Job) -> Written:
    """A file in ONNX, run by onnxruntime on several numbers of samples and lengths.

    Raises:
        ImportError: the extra `onnx` is not installed.
        ExportError: the network cannot be exported, or onnxruntime computes something else.
    """
    require()
    example = needs_example(job, "onnx")
    network = shipped(job.pruned, example)
    trace = traced(network.model, example)
    data, opset = model_bytes(trace)
    checked = verified(network.model, session(data), trace, example)
    files = [(job.path, data)]
    engines = [functools.partial(engine_of, data, trace, example)]
    notes = [f"ONNX opset {opset}.", *trace.notes]
    if job.int8:
        small = quantized(data)
        files.append((job.path.with_suffix(f".int8{job.path.suffix}"), small.data))
        name = "onnxruntime, eight bits"
        engines.append(functools.partial(engine_of, small.data, trace, example, name=name))
        notes.append(_eight_bits(network.model, small, trace, example))
    return Written(
        network=network,
        files=tuple(write_bytes(path, content) for path, content in files),
        checked=checked,
        engines=tuple(engines),
        notes=tuple(notes),
    )


def _eight_bits(model: nn.Module, small: Int8, trace: Trace, example: Batch) -> str:
    """What rounding to eight bits did; how much it matters, only the task's own score says."""
    error = max(c.error for c in verified(model, session(small.data), trace, example, math.inf))
    return (
        f"Eight bits: {len(small.data):,} bytes; the largest output error is {error:.1%} of "
        f"the largest output, so score it on the task; zeros {small.zeros_before:.2%} before and "
        f"{small.zeros_after:.2%} after."
    )


def require() -> None:
    """Raise an ImportError that says what to install."""
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ImportError(
            f"Writing ONNX needs {error.name}. Install the extra: pip install 'prunus[onnx]'."
        ) from None
    del onnx, onnxruntime, onnxscript


def model_bytes(trace: Trace) -> tuple[bytes, int]:
    """The file's content, and its opset."""
    import onnx

    outputs = len(trace.program.graph_signature.user_outputs)
    try:
        with silenced(), torch.no_grad():
            written: Any = torch.onnx.export(
                trace.program,
                dynamo=True,
                verbose=False,
                input_names=list(trace.plain.places),
                output_names=[f"output_{i}" if i else "output" for i in range(outputs)],
            )
            proto = written.model_proto
    except Exception as error:  # whatever the exporter says to an operation that it does not know
        raise ExportError(f"The network has no form in ONNX: {_cause(error)}") from error
    if proto.ByteSize() > LARGEST:
        raise ExportError(
            f"The network takes {proto.ByteSize():,} bytes, and one ONNX file holds 2 GB. Write "
            f"another format."
        )
    onnx.checker.check_model(proto)
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    return proto.SerializeToString(), opset


def _cause(error: Exception) -> str:
    """The line of the exporter's text that says what it lacks: an operation, or its last word."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("(Refer", "⬆"))]
    said = [line for line in lines if "No ONNX function found" in line] or lines[-1:]
    return (said or [type(error).__name__])[0].rpartition("'>: ")[2]


def session(data: bytes) -> Any:
    """onnxruntime's session on this machine's processor, with torch's number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exception classes of its own
        raise ExportError(f"onnxruntime does not load the file: {str(error).strip()}") from error


def verified(
    model: nn.Module, own: Any, trace: Trace, example: Batch, limit: float | None = None
) -> tuple[Check, ...]:
    """The session's outputs held against the model's."""
    if limit is None:
        half = any(p.element_size() < 4 for p in model.parameters() if p.is_floating_point())
        limit = HALF_LIMIT if half else LIMIT
    return tuple(
        compared(
            output_of(model, batch),
            run(own, feeds(trace, own, batch)),
            engine="onnxruntime",
            batch=batch,
            limit=limit,
        )
        for batch in batches_for(trace, example)
    )


def feeds(trace: Trace, own: Any, batch: Batch) -> dict[str, np.ndarray]:
    """The inputs of a session; those that the graph does not read are no inputs of it."""
    known = {entry.name for entry in own.get_inputs()}
    pairs = zip(trace.plain.places, trace.plain.tensors(batch), strict=True)
    return {name: tensor.detach().cpu().numpy() for name, tensor in pairs if name in known}


def run(own: Any, given: Mapping[str, np.ndarray]) -> list[Tensor]:
    """The outputs of a session."""
    try:
        return [torch.from_numpy(np.asarray(value)) for value in own.run(None, dict(given))]
    except Exception as error:  # onnxruntime has exception classes of its own
        raise ExportError(f"onnxruntime does not run the file: {str(error).strip()}") from error


def engine_of(
    data: bytes, trace: Trace, example: Batch, dense: nn.Module, *, name: str = "onnxruntime"
) -> Engine:
    """onnxruntime with the dense network, exported in the same way, and the written file."""
    before = traced(dense, example)
    other, _ = model_bytes(before)
    return Engine(
        name=name,
        before=_runner(session(other), before, example),
        after=_runner(session(data), trace, example),
        threads=torch.get_num_threads(),
        device="cpu",
    )


def _runner(own: Any, trace: Trace, example: Batch) -> Callable[[], Any]:
    given = feeds(trace, own, example)
    return lambda: own.run(None, given)
