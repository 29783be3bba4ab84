"""torch's own file of a graph, `.pt2`: written, loaded and compared."""

import io
from typing import Any

import torch
from torch import Tensor

from prunus.export.check import compared, output_of
from prunus.export.job import Job, Written, needs_example, shipped
from prunus.export.traced import batches_for, silenced, traced
from prunus.files import write_bytes
from prunus.hints import Batch

__all__ = ["write_pt2"]

LIMIT = 1e-5  # of the largest output; measured 0.0


def write_pt2(job: Job) -> Written:
    """A program of torch.export, loaded again and run on several numbers of samples.

    Raises:
        ExportError: torch.export cannot follow the network, or the program is another one.
    """
    example = needs_example(job, "pt2")
    network = shipped(job.pruned, example)
    trace = traced(network.model, example)
    data = io.BytesIO()
    with silenced():
        torch.export.save(trace.program, data)
        again: Any = torch.export.load(io.BytesIO(data.getvalue())).module()

    def run(batch: Batch) -> list[Tensor]:
        with torch.no_grad():
            return list(again(*trace.plain.tensors(batch)))

    checked = tuple(
        compared(
            output_of(network.model, batch), run(batch), engine="torch", batch=batch, limit=LIMIT
        )
        for batch in batches_for(trace, example)
    )
    path = write_bytes(job.path, data.getvalue())
    return Written(network=network, files=(path,), checked=checked, notes=trace.notes)
