"""Windows of text: no overlap, no padding, drawn by seed; and text that was seen before."""

import pytest
import torch

from prunus import tokens
from prunus.tokens import stream, text, token_set


def letters(piece):
    return [ord(c) for c in piece]


class Tokenizer:
    eos_token_id = 0

    def __call__(self, piece, **options):
        assert options == {"add_special_tokens": False, "verbose": False}
        return {"input_ids": letters(piece)}


WORDS = "".join(f"word {i}\n" for i in range(500))


def test_windows_are_pieces_of_the_stream():
    ids = [i for piece in stream([WORDS, "end"], Tokenizer()) for i in piece]
    assert ids == [*letters(WORDS), 0, *letters("end"), 0]
    rows = torch.cat(text([WORDS, "end"], Tokenizer(), 20, 16, seed=3, batch=8))
    assert rows.shape == (20, 16)
    whole = torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)
    starts = [int((whole == row).all(1).nonzero()[0]) for row in rows]
    assert starts == sorted(set(starts))  # in order, none twice


def test_draws_follow_the_seed_and_are_fair():
    first = torch.cat(text([WORDS], letters, 20, 16, seed=0))
    assert torch.equal(first, torch.cat(text([WORDS], letters, 20, 16, seed=0)))
    assert not torch.equal(first, torch.cat(text([WORDS], letters, 20, 16, seed=1)))
    counts = torch.zeros(10)
    numbers = "".join(chr(65 + i) * 2 for i in range(10))
    for seed in range(400):
        for row in text([numbers], letters, 3, 2, seed=seed):
            counts[int(row[0, 0]) - 65] += 1
    # 400 · 3/10 = 120 each; binomial deviation 9.2, so that 5 of them are a false alarm in 1e-6.
    assert bool(((counts - 120).abs() < 5 * 9.2).all()), counts


def test_files_are_read_in_pieces(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text(WORDS + "no newline at the end ä")
    whole = [i for piece in stream(path, Tokenizer()) for i in piece]
    monkeypatch.setattr(tokens, "PIECE", 64)
    pieces = list(stream(path, Tokenizer()))
    assert len(pieces) > 20
    assert [i for piece in pieces for i in piece] == whole
    assert whole == [*letters(WORDS + "no newline at the end ä"), 0]


def test_too_little_text(tmp_path):
    assert len(torch.cat(text(["abcdefgh"], letters, 99, 3))) == 2
    with pytest.raises(ValueError, match=r"has 2 tokens, less than one window of length=3"):
        text(["ab"], letters, 1, 3)
    with pytest.raises(FileNotFoundError, match="no text file"):
        text(tmp_path / "none", letters, 1, 3)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 text"):
        text(tmp_path / "b", letters, 1, 3)


def test_a_stretch_of_known_text_is_found_wherever_windows_begin():
    ids = torch.randint(1000, (1, 512), generator=torch.Generator().manual_seed(0))
    known = token_set([ids])
    other = torch.randint(1000, (64, 96), generator=torch.Generator().manual_seed(1))
    assert known.among(other) == 0
    for shift in range(33):
        other[0, 10 : 10 + 63] = ids[0, 100 + shift : 163 + shift]
        assert known.among(other) == 1
    assert tokens.TokenSet.from_list(known.to_list()).among(other) == 1
    other[0, 40] += 1  # and a stretch that is broken is not
    other[0, 25] += 1
    other[0, 55] += 1
    assert known.among(other) == 0
