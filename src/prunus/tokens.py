"""Text as tokens: one stream, cut into windows of one length, some of them drawn."""

import os
from collections.abc import Callable, Iterable, Iterator
from heapq import heappush, heapreplace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from prunus.check import whole
from prunus.rng import generator_for

__all__ = ["TokenSet", "stream", "text", "token_set"]

PIECE = 2**16  # characters that are tokenised at a time
RUN = 32  # consecutive tokens that count as the same text
ODD = 0x9E3779B97F4A7C15 - 2**64  # of the hash, as a signed number


def text(
    source: str | os.PathLike[str] | Iterable[str],
    tokenizer: Any,
    samples: int,
    length: int,
    seed: int = 0,
    *,
    batch: int = 1,
) -> list[Int64[Tensor, "batch length"]]:
    """Windows of a text as batches of token ids, for calibration: no padding, no overlap.

    All documents make one stream, each followed by the tokenizer's end-of-text token where it has
    one. The stream is cut into windows of `length` tokens, and `samples` of them are drawn without
    replacement, in their order in the text. Memory holds the drawn windows alone.

    Args:
        source: the path of a UTF-8 file, which is one document, or the documents themselves.
        tokenizer: of Hugging Face, or a function str -> ids.
        samples: how many windows; all there are where the text has fewer.
        length: tokens in a window.
        seed: of the draw.
        batch: windows in a batch.

    Returns:
        int64 ids, the last batch maybe smaller.

    Raises:
        ValueError: the text has less than one window, or is no UTF-8.
        FileNotFoundError: no such file.
    """
    whole("samples", samples, low=1)
    whole("length", length, low=2)
    whole("batch", batch, low=1)
    generator = generator_for(seed, "text")
    drawn: list[tuple[float, int, Tensor]] = []  # a heap with the largest key on top
    seen = tokens = 0
    held: list[int] = []
    for ids in stream(source, tokenizer):
        held.extend(ids)
        tokens += len(ids)
        whole_windows = len(held) // length
        for window in range(whole_windows):
            key = float(torch.rand((), dtype=torch.float64, generator=generator))
            entry = (-key, seen, torch.tensor(held[window * length : (window + 1) * length]))
            seen += 1
            if len(drawn) < samples:
                heappush(drawn, entry)
            elif entry[0] > drawn[0][0]:
                heapreplace(drawn, entry)
        del held[: whole_windows * length]
    if not drawn:
        raise ValueError(
            f"The text has {tokens} tokens, less than one window of length={length}. Give a longer "
            f"text, or shorter windows."
        )
    rows = torch.stack([window for _, _, window in sorted(drawn, key=lambda entry: entry[1])])
    return list(torch.split(rows, batch))


def stream(source: str | os.PathLike[str] | Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """The token ids of a text piece by piece; see `text`.

    A file is read in pieces that end with a line, which the tokenizer sees one by one.
    """
    encode, end = _encoder(tokenizer)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"There is no text file {path}. Give a plain UTF-8 file.")
        try:
            with path.open(encoding="utf-8") as file:
                for piece in _pieces(file):
                    yield encode(piece)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}). Convert it.") from None
        yield end
        return
    for document in source:
        yield [*encode(document), *end]


def _pieces(file: Any) -> Iterator[str]:
    rest = ""
    while block := file.read(PIECE):
        rest += block
        cut = rest.rfind("\n") + 1
        if cut == 0 and len(rest) > 4 * PIECE:  # a file without lines
            cut = len(rest)
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _encoder(tokenizer: Any) -> tuple[Callable[[str], list[int]], list[int]]:
    """A function str -> ids without special tokens, and what ends a document."""
    end = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        return (lambda piece: _ids(tokenizer(piece))), []
    return (lambda piece: _ids(tokenizer(piece, add_special_tokens=False, verbose=False))), [end]


def _ids(found: Any) -> list[int]:
    ids = found["input_ids"] if hasattr(found, "keys") else found
    return [int(i) for i in ids]


class TokenSet:
    """Which text was used before: a hash of every `RUN` tokens of it, end to end.

    A stretch of 2 · `RUN` − 1 tokens that stands in another text too is found there wherever
    windows begin.
    """

    def __init__(self, hashes: Int64[Tensor, " runs"]) -> None:
        """The set of these hashes."""
        self.hashes: Int64[Tensor, " runs"] = torch.unique(hashes)

    def __len__(self) -> int:
        return len(self.hashes)

    def among(self, windows: Int64[Tensor, "windows length"]) -> int:
        """How many of the windows hold a run of tokens that is in the set."""
        if windows.shape[1] < RUN or not len(self):
            return 0
        found = torch.isin(_hashed(windows.unfold(1, RUN, 1)), self.hashes)
        return int(found.any(1).sum())

    def to_list(self) -> list[int]:
        """The hashes as whole numbers, for a JSON file."""
        return [int(h) for h in self.hashes]

    @staticmethod
    def from_list(hashes: Iterable[int]) -> "TokenSet":
        """The set that `to_list` wrote."""
        return TokenSet(torch.tensor(list(hashes), dtype=torch.int64))


def token_set(batches: Iterable[Int64[Tensor, "batch length"]]) -> TokenSet:
    """The runs of tokens of some windows; a window shorter than a run has none."""
    found = [
        _hashed(ids[:, : ids.shape[1] // RUN * RUN].reshape(len(ids), -1, RUN)).flatten()
        for ids in batches
        if ids.shape[1] >= RUN
    ]
    return TokenSet(torch.cat(found) if found else torch.empty(0, dtype=torch.int64))


def _hashed(runs: Int64[Tensor, "... run"]) -> Int64[Tensor, "..."]:
    """h = Σ_j (x_j + 1) m^(j + 1) mod 2⁶⁴, finished by a mix of the upper bits into the lower."""
    total = torch.zeros(runs.shape[:-1], dtype=torch.int64)
    for j in range(runs.shape[-1]):
        total = (total + runs[..., j].cpu() + 1) * ODD
    return total ^ (total >> 29)
