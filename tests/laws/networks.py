"""Tiny networks that hold every kind of unit: channels, residual blocks, experts."""

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """Four residual blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Residual() for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Router(nn.Module):
    """The two experts of highest logit, with their softmax as gates."""

    def __init__(self, wide, count):
        super().__init__()
        self.top_k, self.num_experts = 2, count
        self.weight = nn.Parameter(torch.randn(count, wide))

    def forward(self, x):
        gates, index = F.linear(x, self.weight).topk(self.top_k, -1)
        return index, gates.softmax(-1)


class Stack(nn.Module):
    """Experts down(relu(up(x))), side by side in two parameters."""

    def __init__(self, wide, inner, count):
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, inner, wide) / wide**0.5)
        self.down = nn.Parameter(torch.randn(count, wide, inner) / inner**0.5)

    def forward(self, x, index, gates):
        hidden = torch.einsum("nkfd,nd->nkf", self.up[index], x).relu()
        return torch.einsum("nk,nkdf,nkf->nd", gates, self.down[index], hidden)


class Mixture(nn.Module):
    """x + experts(x)."""

    def __init__(self, wide=8, inner=6, count=4):
        super().__init__()
        self.gate, self.experts = Router(wide, count), Stack(wide, inner, count)

    def forward(self, x):
        return x + self.experts(x, *self.gate(x))


class Mixtures(nn.Module):
    """Two layers of four experts."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList(Mixture() for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def linear():
    return nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip


def grouped():
    return nn.Sequential(
        nn.Conv2d(4, 8, 2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 2, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


MAKE = {"linear": linear, "residual": Tower, "mixture": Mixtures, "grouped": grouped}


def network(kind):
    """A network in float64, its inputs and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MAKE[kind]()
        shape = (24, 4, 3, 3) if kind == "grouped" else (24, 8)
        x = torch.randn(shape, dtype=torch.float64) + 0.3
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.double().eval(), x, torch.arange(24) % 4
