"""
A U-Net that takes noise off pictures
=====================================

Skips join what was seen on the way down with what comes up through transposed convolutions, so that
a class of channels spans both ways. The picture of clothes under Gaussian noise is to be restored;
the figure is the mean squared error on pictures that were not learned from.
"""

import torch
from _shipping import SMALL, fit, ship
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data
from prunus.granularity import Node

clothes = load_data("digits" if SMALL else "fashion-mnist")
count = 400 if SMALL else 4000
clean, clean_test = clothes.x_train[:count], clothes.x_test[:500]
draw = torch.Generator().manual_seed(0)
x = clean + 0.5 * clean.std() * torch.randn(clean.shape, generator=draw)
x_test = clean_test + 0.5 * clean.std() * torch.randn(clean_test.shape, generator=draw)


class UNet(nn.Module):
    """Two scales down and up again."""

    def __init__(self, wide: int = 16) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, wide, 3, padding=1)
        self.down2 = nn.Conv2d(wide, 2 * wide, 3, padding=1)
        self.middle = nn.Conv2d(2 * wide, 2 * wide, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(2 * wide, wide, 2, stride=2)
        self.join2 = nn.Conv2d(3 * wide, wide, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(wide, wide, 2, stride=2)
        self.join1 = nn.Conv2d(2 * wide, wide, 3, padding=1)
        self.head = nn.Conv2d(wide, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        y = F.relu(self.middle(F.max_pool2d(two, 2)))
        y = F.relu(self.join2(torch.cat([self.up2(y), two], 1)))
        return x + self.head(F.relu(self.join1(torch.cat([self.up1(y), one], 1))))


torch.manual_seed(0)
model = UNet()


def loss(network: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(network(x[index]), clean[index])


@torch.no_grad()
def error(network: nn.Module) -> float:
    return float(F.mse_loss(network(x_test), clean_test))


fit(model, loss, len(x), epochs=2 if SMALL else 3)
print(f"mean squared error of the noisy pictures {float(F.mse_loss(x_test, clean_test)):.4f}")

# %%
# Half of the channels.

ship(
    model,
    prunus.Recipe(granularity=Node(multiple_of=8)),
    0.5,
    data=x[:128],
    example=x[:8],
    error=error,
    retrain=lambda network: fit(network, loss, len(x), epochs=1, rate=1e-3),
    what="mean squared error",
)
