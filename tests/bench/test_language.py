"""The small language model: its pages, the course of its training, and its score."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunus.bench.data import language
from prunus.bench.data.language import documents, python_text, score, tokenizer, train
from prunus.bench.data.sets import Dataset


class Bigram(nn.Module):
    """Logits of the next token from this one alone."""

    def __init__(self, tokens=5, scale=0.0):
        super().__init__()
        self.table = nn.Parameter(torch.full((tokens, tokens), scale))
        self.modes = set()

    def forward(self, input_ids, use_cache=None):
        self.modes.add(self.training)
        return SimpleNamespace(logits=self.table[input_ids])


def rounds(count=40, length=6, tokens=5):
    """Windows of a stream that counts 0, 1, …, and starts again."""
    windows = (torch.arange(count * length) % tokens).view(count, length)
    return Dataset(
        name="rounds", x_train=windows, y_train=torch.arange(count), x_test=windows,
        y_test=torch.arange(count), fingerprint="", note="",
    )  # fmt: skip


def generator():
    return torch.Generator().manual_seed(0)


def test_every_eighth_page_tests_and_the_others_train():
    from pydoc_data.topics import topics

    train_pages, test_pages, other = map(documents, ("train", "test", "other"))
    assert list(test_pages) == [topics[name] for name in sorted(topics)[::8]]
    assert sorted((*train_pages, *test_pages)) == sorted(topics.values())
    assert not {*other} & {*train_pages, *test_pages}
    assert all(map(str.strip, other))
    with pytest.raises(ValueError, match="`part` must be one of train, test, other, got 'none'"):
        documents("none")


def test_windows_joined_are_the_pages_each_ended(monkeypatch):
    pages = {"train": documents("train")[:3], "test": documents("test")[:2]}
    tokens = tokenizer()
    monkeypatch.setattr(language, "documents", pages.__getitem__)
    data = python_text.__wrapped__()
    for part, windows in (("train", data.x_train), ("test", data.x_test)):
        text = "".join(page + "<|end|>" for page in pages[part])
        joined = tokens.decode(windows.flatten().tolist()).rstrip("\ufffd")  # half a character
        assert windows.shape[1] == 96
        assert text.startswith(joined)
        assert len(tokens(text.removeprefix(joined))["input_ids"]) <= 96
    assert torch.equal(data.y_train, torch.arange(len(data.x_train)))


def test_training_follows_its_course_and_learns_the_next_token():
    """The rate rises over a twentieth of the steps and falls along half a cosine to zero."""
    model, rates, norms = Bigram().eval(), [], []

    def watch(optimizer):
        def note(*_):
            rates.append(optimizer.param_groups[0]["lr"])
            norms.append(float(model.table.grad.norm()))

        optimizer.register_step_pre_hook(note)
        assert optimizer.param_groups[0]["weight_decay"] == 0.01

    steps, rise, best = 40, 2, 0.5
    train(model, rounds(), steps=steps, learning_rate=best, generator=generator(), hold=watch)
    rising = [best * (1 + (rise - 1) * i / rise) / rise for i in range(rise)]
    falling = [best * (1 + math.cos(math.pi * i / (steps - rise))) / 2 for i in range(steps - rise)]
    assert rates == pytest.approx(rising + falling)
    assert max(norms) <= 1 + 1e-6
    assert model.modes == {True}
    assert not model.training
    assert model.table.argmax(1).tolist() == [1, 2, 3, 4, 0]
    found = score(model, rounds())
    assert found["cross_entropy"] < math.log(5) / 2
    again = train(Bigram(), rounds(), steps=steps, learning_rate=best, generator=generator())
    assert torch.equal(again.table, model.table)


def test_gradients_are_clipped_at_one():
    """Logits that are wrong by far, of a loss whose gradient is ten times as steep."""
    model, norms = Bigram(tokens=2), []
    with torch.no_grad():
        model.table.copy_(100 * torch.eye(2))  # sure that a token repeats; it never does

    def watch(optimizer):
        optimizer.register_step_pre_hook(lambda *_: norms.append(float(model.table.grad.norm())))

    one = rounds(tokens=2)
    model.table.register_hook(lambda grad: 10 * grad)
    train(model, one, steps=1, learning_rate=0.1, generator=generator(), hold=watch)
    assert norms == pytest.approx([1.0], rel=1e-4)


def test_a_loss_that_is_not_finite_names_the_step():
    model = Bigram(scale=math.nan)
    with pytest.raises(ValueError, match=r"loss is nan at step 1. Lower the learning rate, got 3"):
        train(model, rounds(), steps=2, learning_rate=3, generator=generator())
    assert model.training


def test_a_model_that_knows_nothing_scores_the_number_of_tokens():
    found = score(Bigram(), rounds())
    assert found == {"perplexity": pytest.approx(5), "cross_entropy": pytest.approx(math.log(5))}
