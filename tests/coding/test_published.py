"""The published file's parts: relative indices, Huffman codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.coding import published
from prunus.coding.huffman import code_lengths, codes_of, decode, encode
from prunus.coding.relative import places, relative


def test_relative_indices_of_the_specification():
    mask = np.zeros(60, dtype=bool)
    mask[[0, 3, 40, 41, 59]] = True
    symbols = relative(mask, 4)
    assert symbols.tolist() == [0, 2, 16, 16, 4, 0, 16, 1]  # 16 is a filler
    assert places(symbols, 4, 60, 5).tolist() == [0, 3, 40, 41, 59]


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 12))
def test_relative_indices_come_back(kept, bits):
    mask = np.array(kept, dtype=bool)
    symbols = relative(mask, bits)
    found = places(symbols, bits, len(mask), int(mask.sum()))
    assert found.tolist() == np.flatnonzero(mask).tolist()


def test_code_lengths_of_the_specification():
    assert code_lengths(np.array([10, 6, 2, 1, 1])).tolist() == [1, 2, 3, 4, 4]
    assert code_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
    assert code_lengths(np.array([0, 0])).tolist() == [0, 0]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50).filter(any))
def test_codes_are_complete_and_within_one_bit_of_the_entropy(counts):
    weights = np.array(counts)
    lengths = code_lengths(weights)
    used = weights > 0
    assert ((lengths > 0) == used).all()
    mean = (lengths * weights).sum() / weights.sum()
    shares = weights[used] / weights.sum()
    entropy = -(shares * np.log2(shares)).sum()
    if used.sum() > 1:
        assert (2.0 ** -lengths[used]).sum() == 1
        assert entropy <= mean + 1e-9
        assert mean < entropy + 1
    words = [
        format(code, f"0{n}b")
        for code, n in zip(codes_of(lengths).tolist(), lengths.tolist(), strict=True)
        if n
    ]
    assert not any(a != b and b.startswith(a) for a in words for b in words)


@given(st.lists(st.integers(0, 20), max_size=300))
def test_huffman_codes_come_back(symbols):
    values = np.array(symbols, dtype=np.int64)
    lengths = code_lengths(np.bincount(values, minlength=21))
    bits = encode(values, lengths)
    assert len(bits) == lengths[values].sum()
    found, size = decode(np.append(bits, [1, 1]).astype(np.uint8), lengths, len(values))
    assert (found.tolist(), size) == (symbols, len(bits))
    if len(values):
        with pytest.raises(ValueError, match="used up too early"):
            decode(bits[:-1], lengths, len(values))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 2], [2, 2, 2], [60, 60]])
def test_lengths_of_no_code_are_refused(lengths):
    with pytest.raises(ValueError, match=r"no complete code|more than 56"):
        codes_of(np.array(lengths))


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 4096), st.integers(1, 8))
def test_published_files_come_back(seed, density, k, bits):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 40)) < density
    codes = rng.integers(0, k, int(mask.sum()))
    data, facts, parts = published.write(mask, codes, k, bits)
    assert sum(parts.values()) == pytest.approx(len(data))
    found, values = published.read(data, (7, 40), int(mask.sum()), k, facts)
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(values, codes)
    for wrong in (data[:-1], data + b"\0", data + b"\1\1"):
        with pytest.raises(ValueError, match=r"its bits|left over|no complete code|filler"):
            published.read(wrong, (7, 40), int(mask.sum()), k, facts)


def test_sizes_of_fixed_width_count_fillers():
    mask = np.zeros((1, 60), dtype=bool)
    mask[0, [0, 3, 40, 41, 59]] = True
    assert published.sizes(mask, 8, 4) == {"mask": 8 * 4 / 8, "codes": 8 * 3 / 8}
