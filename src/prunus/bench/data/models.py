"""The networks of the tasks, as factories that take no argument."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = [
    "ResNet20",
    "cifar10_mlp",
    "cifar10_resnet20",
    "cifar10_vgg",
    "digits_cnn",
    "digits_mlp",
    "fashion_cnn",
    "fashion_mlp",
    "mlp",
    "mnist_lenet5",
    "mnist_lenet300",
    "mnist_mlp",
]


def mlp(widths: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Flatten, then linear layers fc1, fc2, … of the given widths with `activation` between."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        if i > 1:
            parts[f"act{i - 1}"] = activation()
        parts[f"fc{i}"] = nn.Linear(inputs, outputs)
    return nn.Sequential(parts)


def digits_mlp() -> nn.Sequential:
    """64-300-100-10 with ReLU, for the 8×8 digits."""
    return mlp((64, 300, 100, 10))


def mnist_mlp() -> nn.Sequential:
    """784-500-500-10 with sigmoid, the network of Acharyya et al. (2021)."""
    return mlp((784, 500, 500, 10), nn.Sigmoid)


def mnist_lenet300() -> nn.Sequential:
    """LeNet-300-100 with ReLU."""
    return mlp((784, 300, 100, 10))


def fashion_mlp() -> nn.Sequential:
    """784-300-100-10 with ReLU, for Fashion-MNIST."""
    return mlp((784, 300, 100, 10))


def cifar10_mlp() -> nn.Sequential:
    """3072-1000-1000-1000-10 with ReLU, the widths of Acharyya et al. (2021)."""
    return mlp((3072, 1000, 1000, 1000, 10))


def _conv_block(number: int, inputs: int, outputs: int) -> list[tuple[str, nn.Module]]:
    return [
        (f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
        (f"bn{number}", nn.BatchNorm2d(outputs)),
        (f"act{number}", nn.ReLU()),
    ]


def _conv_net(channels: Sequence[int | str], inputs: int, features: int) -> nn.Sequential:
    """Blocks conv-BN-ReLU of the given widths, "pool" between, then one linear layer to 10."""
    parts: list[tuple[str, nn.Module]] = []
    number = pools = 0
    for width in channels:
        if isinstance(width, str):
            pools += 1
            parts.append((f"pool{pools}", nn.MaxPool2d(2)))
        else:
            number += 1
            parts += _conv_block(number, inputs, width)
            inputs = width
    parts += [("flatten", nn.Flatten()), ("fc", nn.Linear(features, 10))]
    return nn.Sequential(OrderedDict(parts))


def digits_cnn() -> nn.Sequential:
    """Three 3×3 convolutions (16, 32, 32 channels) with BN and ReLU, for the 8×8 digits."""
    return _conv_net([16, 32, "pool", 32, "pool"], 1, 32 * 2 * 2)


def fashion_cnn() -> nn.Sequential:
    """Three 3×3 convolutions (16, 32, 64 channels) with BN and ReLU, for Fashion-MNIST."""
    return _conv_net([16, "pool", 32, "pool", 64, "pool"], 1, 64 * 3 * 3)


def cifar10_vgg() -> nn.Sequential:
    """A small VGG: six 3×3 convolutions (32, 32, 64, 64, 128, 128) with BN and ReLU."""
    return _conv_net([32, 32, "pool", 64, 64, "pool", 128, 128, "pool"], 3, 128 * 4 * 4)


def mnist_lenet5() -> nn.Sequential:
    """LeNet-5 as in Caffe and Han et al. (2015): 20 and 50 5×5 filters, then 500 and 10 units."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 500),
            act1=nn.ReLU(),
            fc2=nn.Linear(500, 10),
        )
    )


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut; a change of width goes through a 1×1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. (2016), section 4.2 with n = 3: widths 16, 32, 64 and projection shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(
            *(_Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10) of images (batch, 3, 32, 32)."""
        features: Tensor = self.pool(self.blocks(torch.relu(self.bn(self.conv(x)))))
        logits: Tensor = self.fc(self.flatten(features))
        return logits


def cifar10_resnet20() -> ResNet20:
    """ResNet-20 for 32×32 colour images."""
    return ResNet20()
