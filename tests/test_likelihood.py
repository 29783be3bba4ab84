"""Perplexity against its definition, token by token."""

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.likelihood import perplexity
from prunus.tokens import token_set

VOCABULARY = 7


class Counting(nn.Module):
    """Logits that depend on the token and on how many stand before it in the window."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, 40, VOCABULARY, generator=generator))

    def forward(self, ids):
        return self.table[ids, torch.arange(ids.shape[1])]


def by_definition(model, ids, window, stride):
    """{token: −log p} by the first window that holds it, with what stands before it there."""
    found = {}
    start = 0
    while True:
        rows = ids[start : start + window]
        logp = model(rows[None])[0].double().log_softmax(-1)
        for j in range(1, len(rows)):
            found.setdefault(start + j, -float(logp[j - 1, rows[j]]))
        if start + window >= len(ids):
            return found
        start += stride


@pytest.mark.parametrize("length", [2, 11, 12, 13, 36, 37, 40])
@pytest.mark.parametrize(("window", "stride"), [(12, 12), (12, 5), (12, 11), (12, 1), (2, 2)])
@torch.no_grad()
def test_every_token_is_scored_once(length, window, stride):
    model = Counting()
    ids = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
    expected = by_definition(model, ids, window, stride)
    for batch in (1, 3):
        found = perplexity(model, ids, window=window, stride=stride, batch=batch)
        assert found.tokens == len(expected)
        assert found.nats == pytest.approx(math.fsum(expected.values()), rel=1e-5)
        assert found.value == pytest.approx(math.exp(found.nats / found.tokens))
        assert (found.window, found.stride) == (window, stride)
        assert int(found.window_tokens.sum()) == found.tokens


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    class Uniform(nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, VOCABULARY)

    ids = torch.arange(50) % VOCABULARY
    found = prunus.perplexity(Uniform(), ids[None], window=8)
    assert found.value == pytest.approx(VOCABULARY)
    assert found.interval == pytest.approx((VOCABULARY, VOCABULARY))


def test_the_interval_is_that_of_drawn_windows():
    ids = torch.randint(VOCABULARY, (12 * 60,), generator=torch.Generator().manual_seed(0))
    found = perplexity(Counting(), ids, window=12)
    means = found.window_nats / found.window_tokens
    spread = float(means.std()) / math.sqrt(len(means))
    low, high = (math.log(edge) for edge in found.interval)
    assert low < math.log(found.value) < high
    # A mean of 60 is normal enough that its percentiles are those of the standard error.
    assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.15)
    assert perplexity(Counting(), ids, window=12).interval == found.interval


def test_text_that_calibrated_is_counted():
    ids = torch.randint(VOCABULARY, (64 * 8,), generator=torch.Generator().manual_seed(0))
    seen = token_set([ids[130:200][None]])  # two runs of 32, in the windows from 128 and 192
    found = perplexity(Counting40(), ids, window=64, seen=seen)
    assert found.in_sample == 1
    assert "1 of 8 windows in-sample" in str(found)
    assert perplexity(Counting40(), ids.flip(0), window=64, seen=seen).in_sample == 0


class Counting40(Counting):
    def forward(self, ids):
        return self.table[ids, torch.arange(ids.shape[1]) % 40]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.arange(1), {}, "two or more whole token ids"),
        (torch.zeros(5), {}, "two or more whole token ids, got torch.float32"),
        (torch.zeros(2, 5, dtype=torch.int64), {}, "one stream"),
        (torch.tensor([0, -1, 2]), {}, "got -1 to 2"),
        (torch.arange(5), {"window": 1}, "`window` must be a whole number >= 2"),
        (torch.arange(5), {"stride": 5}, "`stride` must be at most window=4"),
    ],
)
def test_what_is_wrong_is_said(ids, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity(Counting(), ids, **{"window": 4, **options})


def test_logits_that_are_no_numbers_are_refused():
    model = Counting()
    with torch.no_grad():
        model.table[1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        perplexity(model, torch.arange(6), window=4)
    with pytest.raises(ValueError, match=r"must give logits of shape .* got \(1, 12\)"):
        perplexity(nn.Sequential(nn.Embedding(7, 3), nn.Flatten()), torch.arange(4), window=4)
