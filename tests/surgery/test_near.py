"""Widths that stand in modules beside the cut layers, or farther out, follow the cut."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus


class View(nn.Module):
    """A view by a shape, or by numbers, of its own."""

    def __init__(self, **own):
        super().__init__()
        vars(self).update(own)

    def forward(self, x):
        if hasattr(self, "shape"):
            return x.view(len(x), *self.shape)
        return x.view(len(x), self.channels, self.side, self.side)


VIEWS = {
    "unflatten": lambda: nn.Unflatten(1, (6, 2, 2)),
    "tuple": lambda: View(shape=(6, 2, 2)),
    "list": lambda: View(shape=[6, 2, 2]),
    "numbers": lambda: View(channels=6, side=2),
}


def decoder(view):
    return nn.Sequential(
        nn.Linear(5, 24), nn.ReLU(), view, nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip


class Generator(nn.Module):
    """The width stands two modules above the layer that makes it."""

    def __init__(self):
        super().__init__()
        self.width, self.enter = 6, nn.Sequential(nn.Linear(5, 24), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, z):
        return self.body(self.enter(z).view(-1, self.width, 2, 2))


@pytest.mark.parametrize("name", [*VIEWS, "above"])
def test_a_view_beside_the_layers_or_above_them_follows(name, tmp_path):
    def build():
        return Generator().eval() if name == "above" else decoder(VIEWS[name]())

    torch.manual_seed(0)
    model, x = build(), torch.randn(16, 5)
    pruned = prunus.prune(model, "importance-node", 0.5, data=x)
    assert sorted(pruned.plan.kept.values()) == [2, 3]
    small, fresh = pruned.compact(), torch.randn(3, 5)
    torch.testing.assert_close(small(fresh), pruned.model(fresh))
    again = prunus.load(pruned.save(tmp_path / "net"), build)
    torch.testing.assert_close(again.compact()(fresh), small(fresh))
    if name == "above":
        assert (small.width, model.width) == (3, 6)
    else:
        shape = getattr(small[2], "unflattened_size", getattr(small[2], "shape", None))
        assert shape is None or type(shape)(shape) == type(shape)((3, 2, 2))


def test_a_width_of_the_same_value_that_has_nothing_to_do_with_it_stays():
    class Repeat(nn.Module):
        """As many copies as the layer before has channels, by chance."""

        def __init__(self):
            super().__init__()
            self.times = 6

        def forward(self, x):
            return F.relu(x).repeat(self.times, 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Repeat(), nn.Linear(6, 2)).eval()
    pruned = prunus.prune(model, "importance-node", 0.5, data=torch.randn(16, 5))
    small = pruned.compact()
    assert (small[0].out_features, small[1].times) == (3, 6)
