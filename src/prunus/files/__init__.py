"""Files and folders that are either whole or as they were: one writer for each kind.

`new_file`, `write_bytes`, `write_text` write a single file; `write_folder` and `saving` several
that belong together; `new_folder` a folder that other software reads; `growing` one that takes
hours and takes its name at the end; `LineFile` appends. All else in prunus writes through these.
"""

from prunus.files.folder import Saving, named_parts, read_folder, saving, write_folder
from prunus.files.growing import Growing, growing
from prunus.files.lines import (
    KnownRow,
    LineFile,
    Row,
    Rows,
    named_numbers,
    numbers,
    row_text,
    whole_lines,
)
from prunus.files.lock import locked
from prunus.files.single import make_folder, new_file, write_bytes, write_text
from prunus.files.stream import Patient, open_closed
from prunus.files.whole import Scratch, new_folder

__all__ = [
    "Growing",
    "KnownRow",
    "LineFile",
    "Patient",
    "Row",
    "Rows",
    "Saving",
    "Scratch",
    "growing",
    "locked",
    "make_folder",
    "named_numbers",
    "named_parts",
    "new_file",
    "new_folder",
    "numbers",
    "open_closed",
    "read_folder",
    "row_text",
    "saving",
    "whole_lines",
    "write_bytes",
    "write_folder",
    "write_text",
]
