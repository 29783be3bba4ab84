"""Our own folder: safetensors and JSON, read by `prunus.load`."""

from torch import Tensor

from prunus.export.check import held, output_of
from prunus.export.job import Job, Written

__all__ = ["write_safetensors"]


def write_safetensors(job: Job) -> Written:
    """`Pruned.save`, read again by `prunus.load` and compared on the example.

    Raises:
        ExportError: what was read is another network.
    """
    example = job.example if job.compact else None
    folder = job.pruned.save(job.path, example=example)
    again = job.pruned.reloaded(folder)
    model = again.compact() if job.compact else again.model

    def run(batch: object) -> list[Tensor]:
        return output_of(model, batch)

    checked = () if job.example is None else held(
        job.model, run, job.example, engine="torch", limit=1e-6
    )  # fmt: skip
    files = tuple(sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")))
    return Written(
        files=files,
        checked=checked,
        notes=("Read it with prunus.load(folder, model=…), the architecture that was pruned.",),
    )
