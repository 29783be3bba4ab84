"""Coders of a pruned layer side by side: sizes and processor times, one thread, in one run.

A mask of a 4096 × 4096 layer at density 0.1 (columns of unequal density, as trained layers have
them) and codes of its kept entries (16 values, unequally often): this package's coders against a
canonical Huffman code of relative indices and of codes (our own, as Han et al. 2015b store them),
and zlib, lzma and zstd on the mask's bits and the codes' bytes. Each is timed in turn, the smallest
of the repetitions counts. `entries_per_s` counts all entries of the layer, kept or not; `rate` is
the entropy of the mask if its entries were independent, and of the codes.

    python benchmarks/compress.py [--small]
"""

import argparse
import json
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prunus.coding import published
from prunus.coding.layer import read_stream, write_stream
from prunus.coding.masks import CODERS
from prunus.files import write_text
from prunus.host import host_facts, versions

K = 16
BITS = 5
Coder = tuple[
    Callable[[], Any], Callable[[Any], tuple[np.ndarray, np.ndarray]], Callable[[Any], int]
]


def layer(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask and the codes of its kept entries."""
    rng = np.random.default_rng(0)
    columns = rng.gamma(2.0, 1.0, side)
    mask = rng.random((side, side)) < 0.1 * columns / columns.mean()
    shares = np.exp(-0.5 * ((np.arange(K) - K / 2) / 2.5) ** 2)
    return mask, rng.choice(K, int(mask.sum()), p=shares / shares.sum()).astype(np.uint16)


def coders(mask: np.ndarray, codes: np.ndarray) -> dict[str, Coder]:
    """{name: (encode, decode, bytes of what was encoded)}."""
    kept = int(mask.sum())
    found: dict[str, Coder] = {}

    def ours(coder: str | None) -> Coder:
        return (
            lambda: write_stream(mask, codes, K, coder=coder),
            lambda s: read_stream(s.words, s.coder, s.lanes, mask.shape, kept, K),
            lambda s: 2 * len(s.words),
        )

    found["prunus, smallest"] = ours(None)
    for name in CODERS:
        found[f"prunus, {name}"] = ours(name)
    found[f"Huffman, {BITS}-bit gaps"] = (
        lambda: published.write(mask, codes, K, BITS),
        lambda s: published.read(s[0], mask.shape, kept, K, s[1]),
        lambda s: len(s[0]),
    )

    def general(compress: Callable[[bytes], bytes], back: Callable[[bytes], bytes]) -> Coder:
        def decode(parts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
            bits = np.unpackbits(np.frombuffer(back(parts[0]), dtype=np.uint8), count=mask.size)
            return bits.astype(bool).reshape(mask.shape), np.frombuffer(back(parts[1]), np.uint8)

        return (
            lambda: [
                compress(np.packbits(mask).tobytes()),
                compress(codes.astype(np.uint8).tobytes()),
            ],
            decode,
            lambda parts: sum(map(len, parts)),
        )

    found["zlib 9"] = general(lambda b: zlib.compress(b, 9), zlib.decompress)
    found["lzma 6"] = general(lambda b: lzma.compress(b, preset=6), lzma.decompress)
    try:
        import zstandard
    except ImportError:
        print("zstd is left out: pip install zstandard")
    else:
        found["zstd 19"] = general(
            zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress
        )
    return found


def measured(side: int, repetitions: int) -> list[dict[str, Any]]:
    """A row for each coder."""
    mask, codes = layer(side)
    density = mask.mean()
    counts = np.bincount(codes)
    independent = -mask.size * (density * np.log2(density) + (1 - density) * np.log2(1 - density))
    entropy = float((independent + (counts * np.log2(len(codes) / counts)).sum()) / 8)
    all_coders = coders(mask, codes)
    best: dict[str, list[float]] = {name: [np.inf, np.inf, 0.0] for name in all_coders}
    for _ in range(repetitions):
        for name, (encode, decode, size) in all_coders.items():
            begun = time.process_time()
            stored = encode()
            middle = time.process_time()
            found = decode(stored)
            ended = time.process_time()
            assert np.array_equal(found[0], mask)
            assert np.array_equal(found[1], codes)
            own = best[name]
            best[name] = [min(own[0], middle - begun), min(own[1], ended - middle), size(stored)]
    return [
        {
            "coder": name,
            "bytes": int(size),
            "over_independent_entropy": size / entropy,
            "encode_s": encode,
            "decode_s": decode,
            "decode_million_entries_per_s": mask.size / decode / 1e6,
            "encode_over_decode": encode / decode,
        }
        for name, (encode, decode, size) in best.items()
    ]


def main() -> None:
    """Measure, print, and keep the numbers unless --small."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a layer of 512 × 512, once")
    small = parser.parse_args().small
    side = 512 if small else 4096
    rows = measured(side, 1 if small else 2)
    for row in rows:
        print(
            f"{row['coder']:<24}{row['bytes']:>10,} B {row['over_independent_entropy']:>7.3f}  "
            f"encode {row['encode_s']:>7.2f} s  decode {row['decode_s']:>7.2f} s "
            f"{row['decode_million_entries_per_s']:>8.1f} M entries/s"
        )
    if not small:
        facts = {"side": side, "rows": rows, "versions": versions(), "host": host_facts()}
        path = Path(__file__).parent / "results" / "compress.json"
        print(write_text(path, json.dumps(facts, indent=1) + "\n"))


if __name__ == "__main__":
    main()
