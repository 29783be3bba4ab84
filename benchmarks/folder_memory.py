"""Peak anonymous memory of `prune_folder` against its formula, by depth and for a gigabyte.

A new process prunes a small folder first, so that all libraries are there, and then the measured
one; its anonymous memory is sampled from outside every two milliseconds (maps of files are not in
it). Folders of random weights are made on the spot and removed. What is above the formula is
temporaries of selection and statistics, and what the allocator holds.

    python benchmarks/folder_memory.py [--small]
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from prunus.files import write_text
from prunus.host import host_facts, versions

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from tests.anonymous import anonymous_peak  # noqa: E402
from tests.folder.large import prepare, random_llama, work  # noqa: E402

TARGETS = {
    "bytes above the formula": 150e6, "12 and 24 blocks apart": 0.05, "peak, a gigabyte": 1.5e9,
}  # fmt: skip


def measure(place: Path, small: Path, recipe: str, blocks: int, width: int, ffn: int) -> Any:
    """One row."""
    source = place / "source"
    size = random_llama(source, blocks=blocks, width=width, ffn=ffn)
    before, peak, (needs, kept, total, seconds) = anonymous_peak(
        prepare, work, source, small, place / "out", recipe, 8, 128
    )
    for folder in (source, place / "out"):
        shutil.rmtree(folder)
    row = {
        "recipe": recipe, "blocks": blocks, "width": width, "ffn": ffn, "folder bytes": size,
        "libraries bytes": before, "peak bytes": peak, "above libraries": peak - before,
        "formula": needs, "above the formula": peak - before - needs,
        "kept": kept, "of": total, "processor seconds": seconds,
    }  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    cases = [(12, 512, 1408), (24, 512, 1408), (20, 1024, 2816)]
    if options.small:
        cases = [(2, 64, 160), (4, 64, 160)]
    path = HERE / "results" / "folder_memory.json"
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        random_llama(place / "small", blocks=2, width=32, ffn=48)
        for recipe in ("wanda", "sparsegpt"):
            for case in cases:
                rows.append(measure(place, place / "small", recipe, *case))
                facts = {"targets": TARGETS, "rows": rows}
                if not options.small:
                    text = {**facts, "versions": versions(), "host": host_facts()}
                    write_text(path, json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
