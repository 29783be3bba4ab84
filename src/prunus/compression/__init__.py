"""Pruned networks in as few bytes as they take: shared values, entropy-coded masks and codes."""

from prunus.compression.rate import RateDistortion
from prunus.compression.read import decompress
from prunus.compression.write import Compressed, compress

__all__ = ["Compressed", "RateDistortion", "compress", "decompress"]
