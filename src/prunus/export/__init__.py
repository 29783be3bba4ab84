"""Shipping: a pruned network as a file for other software, checked and timed; a file per format.

`prunus.export.export` is `Pruned.export`. Adding a format is a file with a `Format` and a row.
"""

from prunus.export.answer import Check, Export, Timing
from prunus.export.check import ExportError
from prunus.export.job import Format
from prunus.export.run import FORMATS, export
from prunus.export.sparse import Sparse, sparse_layers

__all__ = [
    "FORMATS",
    "Check",
    "Export",
    "ExportError",
    "Format",
    "Sparse",
    "Timing",
    "export",
    "sparse_layers",
]
