"""Shipping: a pruned network as a file for other software, checked and timed; a file per format.

`prunus.export.export` is `Pruned.export`. Adding a format is a file with a `Format` and a row.
`compress` and `decompress` are those of `prunus.compression`, which stands below results.
"""

import importlib
from typing import Any

from prunus.export.answer import Check, Export, Timing
from prunus.export.check import ExportError
from prunus.export.from_pt2 import read_pt2
from prunus.export.job import Format
from prunus.export.run import FORMATS, export
from prunus.export.sparse import Sparse, sparse_layers

_LATER = ("Compressed", "RateDistortion", "compress", "decompress")

__all__ = [
    "FORMATS",
    "Check",
    "Export",
    "ExportError",
    "Format",
    "Sparse",
    "Timing",
    "export",
    "read_pt2",
    "sparse_layers",
    *_LATER,
]


def __getattr__(name: str) -> Any:
    """Import the compression on first use: it needs results, which need this package."""
    if name in _LATER:
        return getattr(importlib.import_module("prunus.compression"), name)
    raise AttributeError(f"module 'prunus.export' has no attribute {name!r}")
