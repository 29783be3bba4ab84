"""All that prunus writes, as versions of one place: for tests that kill it, or fill its disk.

A new writer is a row of `WRITERS`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import models
import prunus
from prunus import files
from prunus.bench import Record, RecordWriter, content_id, read_records
from prunus.calibration import Calibration, calibrate
from prunus.compression import compress, decompress


@dataclass(frozen=True)
class Writer:
    """Writes versions 0, 1, 2, … to one place, and says which one lies there, whole.

    `made` prepares what is written, once; `left` says what may lie in the folder after a write, by
    patterns; there are `kinds` of versions, and each write of one that `grows` adds one to those
    before. By default a writer is killed at every so manieth call (`stride`), or at none.
    """

    made: Callable[[], Any]
    write: Callable[[Any, Path, int], None]
    read: Callable[[Any, Path], int]
    left: tuple[str, ...]
    kinds: int = 10**9
    grows: bool = False
    stride: int = 0


def small_network():
    model, x = models.MLP((6, 8, 4)), torch.randn(16, 6)
    return model, prunus.prune(model, "magnitude", 0.5, data=x)


def save_network(made, place, version):
    pruned = replace(made[1], seed=version)
    with torch.no_grad():
        pruned.model.layers[0].bias.fill_(version)
    pruned.save(place / "net")


def load_network(made, place):
    found = prunus.load(place / "net", made[0])
    assert set(found.model.layers[0].bias.tolist()) == {found.seed}
    return found.seed


def calibrations():
    model, x = models.MLP((6, 8, 4)), torch.randn(16, 6)
    return [calibrate(model, x[: 4 + i]) for i in range(5)]


def save_calibration(made, place, version):
    made[version % 5].save(place / "net")


def load_calibration(made, place):
    found = Calibration.load(place / "net")
    version = found.samples - 4
    assert torch.equal(found["layers.0"].gram, made[version]["layers.0"].gram)
    return version


def write_page(made, place, version):
    replace(made[1], name=f"version {version}.").report(place / "page.html")


def read_page(made, place):
    text = (place / "page.html").read_text()
    assert text.rstrip().endswith("</html>")
    return int(text.partition("Pruned by version ")[2].partition(".")[0])


def read_rows(made, place):
    """Every row once and in order; of a killed writer's torn line nothing."""
    rows = [json.loads(line) for line in files.whole_lines(place / "rows.jsonl")[0]]
    assert [row["version"] for row in rows] == list(range(len(rows)))
    return len(rows) - 1


def append(made, place, version):
    with files.LineFile(place / "rows.jsonl") as file:
        file.append(files.row_text({"version": version, "text": "x" * 100}))


def record(version):
    return Record(
        id=content_id(version=version), task="t", recipe="r", recipe_repr="", recipe_hash="",
        seed=version, density_asked=0.5, density=0.5,
    )  # fmt: skip


def append_record(made, place, version):
    with RecordWriter(place) as writer:
        writer.append(record(version))


def read_seeds(made, place):
    seeds = sorted(row.seed for row in read_records(place).rows)
    assert seeds == list(range(len(seeds)))
    return len(seeds) - 1


def write_parts(made, place, version):
    parts = {part: f"{part} {version}".encode() for part in ("first", "second")}
    files.write_folder(place / "net", "own.json", {"version": version}, parts)


def read_parts(made, place):
    facts, parts = files.read_folder(
        place / "net", "own.json", lambda: json.loads((place / "net" / "own.json").read_text())
    )
    assert {part: data.decode() for part, data in parts.items()} == {
        part: f"{part} {facts['version']}" for part in ("first", "second")
    }
    return facts["version"]


def write_digits(made, place, version):
    files.write_text(place / "a", f"{version:9}" * 99)


def read_digits(made, place):
    text = (place / "a").read_text()
    assert text == text[:9] * 99
    return int(text[:9])


def write_new_folder(made, place, version):
    """Such a folder is made once: each version is one of its own."""
    with files.new_folder(place / f"net{version}") as aside:
        for name in "ab":
            (aside / name).write_text(str(version))


def read_new_folders(made, place):
    folders = sorted(place.glob("net*"), key=lambda path: int(path.name[3:]))
    for version, folder in enumerate(folders):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "a": str(version), "b": str(version),
        }  # fmt: skip
    return len(folders) - 1


def write_compressed(made, place, version):
    pruned = replace(made[1], seed=version)
    with torch.no_grad():
        pruned.model.layers[0].bias.fill_(version)
    compress(pruned, place / "net.safetensors", progress=False)


def read_compressed(made, place):
    found = decompress(place / "net.safetensors", made[0]).model.layers[0].bias
    (version,) = set(found.tolist())
    return int(version)


def nothing():
    return None


WRITERS = {
    "single": Writer(
        nothing,
        write_digits,
        read_digits,
        ("a",),
        stride=1,
    ),
    "folder": Writer(
        nothing,
        write_parts,
        read_parts,
        ("net/first-*", "net/own.json", "net/second-*"),
        stride=7,
    ),
    "lines": Writer(nothing, append, read_rows, ("rows.jsonl",), grows=True, stride=2),
    "records": Writer(nothing, append_record, read_seeds, ("records-*.jsonl",), grows=True),
    "new folder": Writer(
        nothing, write_new_folder, read_new_folders, ("net*/a", "net*/b"), grows=True
    ),
    "network": Writer(
        small_network, save_network, load_network, ("net/pruned.json", "net/weights-*")
    ),
    "calibration": Writer(
        calibrations,
        save_calibration,
        load_calibration,
        ("net/calibration.json", "net/statistics-*"),
        kinds=5,
    ),
    "compressed": Writer(small_network, write_compressed, read_compressed, ("net.safetensors",)),
    "report": Writer(small_network, write_page, read_page, ("page.html",)),
}


def lies_there(place: Path) -> list[str]:
    return sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())


def only_its_own(writer: Writer, place: Path) -> None:
    """Every file fits a pattern, and every pattern has one file, or several where rows are."""
    for path in lies_there(place):
        assert any(Path(path).match(pattern) for pattern in writer.left), path
    for pattern in writer.left:
        found = list(place.glob(pattern))
        assert len(found) == 1 or (found and writer.grows), (pattern, found)
