"""
A residual network on pictures of clothes
=========================================

Channels of a residual stream belong together: what one block writes all later ones read. The small
network is a plain dense one, without a mask or an index left in it.
"""

import torch
from _shipping import SMALL, fit, ship
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data
from prunus.granularity import Node

clothes = load_data("digits" if SMALL else "fashion-mnist")
count = 500 if SMALL else 6000
x, y = clothes.x_train[:count], clothes.y_train[:count]
x_test, y_test = clothes.x_test[:2000], clothes.y_test[:2000]


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(wide, out, 3, stride, 1, bias=False)
        self.b = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.one, self.two = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.short = None if wide == out else nn.Conv2d(wide, out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.b(F.relu(self.one(self.a(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    """Three stages of one block each."""

    def __init__(self, wide: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide)
        self.blocks = nn.Sequential(
            Block(wide, wide, 1), Block(wide, 2 * wide, 2), Block(2 * wide, 4 * wide, 2)
        )
        self.head = nn.Linear(4 * wide, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        return self.head(self.blocks(x).mean((2, 3)))


torch.manual_seed(0)
model = ResNet()


def loss(network: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(x[index]), y[index])


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float((network(x_test).argmax(1) != y_test).float().mean())


fit(model, loss, len(x), epochs=2 if SMALL else 5)

# %%
# 40 % of the channels stay; least squares refits what reads them before anything is retrained.

ship(
    model,
    prunus.Recipe(granularity=Node(multiple_of=8), compensation=prunus.compensation.LeastSquares()),
    0.4,
    data=x[:256],
    example=x[:16],
    error=error,
    retrain=lambda network: fit(network, loss, len(x), epochs=1 if SMALL else 2, rate=1e-3),
    what="test error",
)
