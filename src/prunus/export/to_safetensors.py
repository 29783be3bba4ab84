"""Our own folder: safetensors and JSON, read by `prunus.load`."""

import tempfile

from prunus.export.answer import Check
from prunus.export.check import held, output_of
from prunus.export.job import Job, Written, shipped

__all__ = ["write_safetensors"]


def write_safetensors(job: Job) -> Written:
    """`Pruned.save`, read again by `prunus.load` and compared on the example.

    Raises:
        ExportError: what was read is another network.
    """
    network = shipped(job.pruned, job.example)
    example = job.example if network.compact else None
    checked: tuple[Check, ...] = ()
    if job.example is not None:
        with tempfile.TemporaryDirectory() as aside:
            again = job.pruned.reloaded(job.pruned.save(aside, example=example))
        model = again.compact() if network.compact else again.model
        checked = held(
            network.model,
            lambda batch: output_of(model, batch),
            job.example,
            engine="torch",
            limit=1e-6,
        )
    folder = job.pruned.save(job.path, example=example)
    files = tuple(sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors")))
    return Written(
        network=network,
        files=files,
        checked=checked,
        notes=("Read it with prunus.load(folder, model=…), the architecture that was pruned.",),
    )
