"""Layers that take the same inputs have one sum: once made, equal to a sum of each one's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import calibrate
from prunus.calibration import collect, second_moment
from prunus.calibration.statistics import gram as gram_statistic

WIDE = 6


class Attention(nn.Module):
    """Queries, keys, values and what mixes them; `way` decides what the keys and values read."""

    def __init__(self, way: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDE, WIDE) for _ in range(3))
        self.out = nn.Linear(WIDE, 2)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.way(x)
        return self.out(self.q(q) * self.k(k) + self.v(v))


def same(x: Tensor) -> tuple[Tensor, ...]:
    return x, x, x


def apart(x: Tensor) -> tuple[Tensor, ...]:
    return x, x.clone(), 2 * x


def apart_later(x: Tensor) -> tuple[Tensor, ...]:
    return (x, x, x) if x[0, 0] < 0.5 else (x, x, x + 1)


def together_later(x: Tensor) -> tuple[Tensor, ...]:
    return (x, x + 1, x) if x[0, 0] < 0.5 else (x, x, x)


def view(x: Tensor) -> tuple[Tensor, ...]:
    return x, x[:], x.view(-1, WIDE)


def slices(x: Tensor) -> tuple[Tensor, ...]:
    return x, x[1:].repeat(2, 1)[: len(x)], x


WAYS = (same, apart, apart_later, together_later, view, slices)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(5, WIDE, generator=generator) for _ in range(4)]
    for i, x in enumerate(made):
        x[0, 0] = 0.1 if i < 2 else 0.9
    return made


def expected(way: Any, name: str) -> tuple[Tensor, Tensor]:
    place = "qkv".index(name)
    x = torch.cat([way(batch)[place] for batch in batches()]).double()
    return x.T @ x / len(x), x.mean(0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_layer_has_the_moments_of_its_own_inputs(way: Any) -> None:
    torch.manual_seed(0)
    found = calibrate(Attention(way), batches(), statistics=("gram", "mean", "max"))
    for name in "qkv":
        gram, mean = expected(way, name)
        torch.testing.assert_close(found[name].gram, gram)
        torch.testing.assert_close(found[name].mean, mean)
        assert found[name].samples == 20
    doubled = found + found
    torch.testing.assert_close(doubled["v"].gram, expected(way, "v")[0])


def test_what_is_shared_is_made_and_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counting(total: Tensor, vectors: Tensor) -> None:
        made.append(len(vectors))
        second_moment.add_second_moment(total, vectors)

    monkeypatch.setattr(gram_statistic, "add_second_moment", counting)
    found = calibrate(Attention(same), batches())
    assert len(made) == 2 * 4  # the projections together, and the output's
    assert found["k"].gram is found["q"].gram is found["v"].gram
    assert found["out"].gram is not found["q"].gram
    made.clear()
    found = calibrate(Attention(apart), batches())
    assert len(made) == 4 * 4
    assert found["k"].gram is not found["q"].gram


class Steps(nn.Module):
    """A layer that runs twice, beside one that reads its first inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        first = self.twice(x)
        second = self.once(x)
        return self.twice(torch.relu(first)) + second


class InPlace(nn.Module):
    """The second layer reads what the first one's input has become."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        x.add_(1)
        return first + self.two(x)


def test_more_calls_and_changes_in_place_are_no_sharing() -> None:
    torch.manual_seed(0)
    model = Steps()
    found = calibrate(model, batches())
    x = torch.cat(batches())
    with torch.no_grad():
        inner = torch.relu(nn.functional.linear(x, model.twice.weight, model.twice.bias))
    both = torch.cat([x, inner]).double()
    torch.testing.assert_close(found["twice"].gram, both.T @ both / len(both))
    torch.testing.assert_close(found["once"].gram, x.double().T @ x.double() / len(x))
    found = calibrate(InPlace(), batches())
    torch.testing.assert_close(found["one"].gram, x.double().T @ x.double() / len(x))
    later = (x + 1).double()
    torch.testing.assert_close(found["two"].gram, later.T @ later / len(x))


def test_memory_that_is_not_there_is_said_before_data_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = 8 * 4 * WIDE**2
    monkeypatch.setattr(collect, "available_memory", lambda device: needed)
    calibrate(Attention(same), batches(), statistics="gram")
    monkeypatch.setattr(collect, "available_memory", lambda device: needed - 1)
    with pytest.warns(RuntimeWarning, match=r"statistics of 4 layers may take .* blocks='auto'"):
        calibrate(Attention(same), batches(), statistics="gram")
    monkeypatch.setattr(collect, "available_memory", lambda device: None)
    calibrate(Attention(same), batches(), statistics="gram")
