"""Small networks, untrained, that between them hold every structure the engine meets."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Linear layers of the given widths, with or without batch norm and biases."""

    def __init__(
        self,
        widths: tuple[int, ...] = (12, 16, 10, 5),
        activation: str = "relu",
        norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i, (wide, out) in enumerate(pairwise(widths)):
            parts.append(nn.Linear(wide, out, bias=bias))
            if i < len(widths) - 2:
                if norm:
                    parts.append(nn.BatchNorm1d(out))
                parts.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ConvFlatten(nn.Module):
    """Two convolutions with batch norm, flattened into two linear layers."""

    def __init__(self, activation: str = "relu", padding: int = 1) -> None:
        super().__init__()
        side = {1: 2, 0: 1}[padding]
        self.conv1 = nn.Conv2d(2, 6, 3, padding=padding)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=padding, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.act = ACTIVATIONS[activation]()
        self.fc1 = nn.Linear(8 * side * side, 9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool2d(self.act(self.norm2(self.conv2(x))), 2, ceil_mode=True)
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class ConvPool(nn.Module):
    """Convolutions, global average pool, linear."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), ACTIVATIONS[activation](),
            nn.Conv2d(6, 7, 3, stride=2), ACTIVATIONS[activation](), nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x.view(x.size(0), -1))


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut, padded (option A) or convolutional (option B)."""

    def __init__(self, wide: int, out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.extra = out - wide
        self.stride = stride
        self.down = None
        if shortcut == "conv" and (stride > 1 or wide != out):
            self.down = nn.Sequential(
                nn.Conv2d(wide, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.down is not None:
            y += self.down(x)
        else:
            x = x[:, :, :: self.stride, :: self.stride]
            y = y + F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(y)


class ResNet20(nn.Module):
    """The residual network of He et al. (2016) for 32×32 images: three stages of three blocks."""

    def __init__(self, shortcut: str, width: int = 16, blocks: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages, wide = [], width
        for stage in range(3):
            for i in range(blocks):
                out = width * 2**stage
                stages.append(Block(wide, out, 2 if stage and i == 0 else 1, shortcut))
                wide = out
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.bn(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Mixed(nn.Module):
    """Depthwise (also with a multiplier), concatenation, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, groups=8)
        self.side = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(24, 12, 3, groups=4)
        self.last = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.depth(F.relu(self.stem(x)))))
        y = torch.cat([F.relu(self.wide(y)), F.gelu(self.side(x))], dim=1)
        y = torch.tanh(self.last(F.relu(self.grouped(y))))
        return self.fc(y.mean((2, 3)))


class Conv1dNet(nn.Module):
    """One-dimensional convolutions with dilation, read in channel-last order at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 6, 3, dilation=2)
        self.conv2 = nn.Conv1d(6, 5, 3, padding="same")
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.transpose(1, 2)).amax(dim=1)


class Conv3dNet(nn.Module):
    """Three-dimensional convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 5, 2)
        self.norm = nn.BatchNorm3d(5)
        self.conv2 = nn.Conv3d(5, 4, 2, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3, 4)))


class CalledTwice(nn.Module):
    """One module applied two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.shared = nn.Linear(8, 8)
        self.middle = nn.Linear(8, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x))))))
        return self.last(F.relu(self.middle(x)))


class Tied(nn.Module):
    """Two modules that hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(8, 8)
        self.right.weight = self.left.weight
        self.middle = nn.Linear(8, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.right(F.relu(self.left(F.relu(self.first(x))))))
        return self.last(F.relu(self.middle(x)))


class Transposed(nn.Module):
    """A transposed convolution between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3)
        self.up = nn.ConvTranspose2d(5, 6, 2, stride=2)
        self.conv2 = nn.Conv2d(6, 7, 3)
        self.conv3 = nn.Conv2d(7, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(F.relu(self.conv1(x))))
        return self.conv3(F.relu(self.conv2(x))).mean((2, 3))


class Attention(nn.Module):
    """A transformer encoder between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM, then linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.fc1 = nn.Linear(7, 8)
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(x))
        return self.fc2(F.relu(self.fc1(y[:, -1])))


class Gated(nn.Module):
    """Squeeze-and-excite gate, learned channel scale and shift, group and layer norm, split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, 8, 1, 1))
        self.where = nn.Parameter(torch.randn(1, 1, 6, 6))
        self.squeeze = nn.Linear(8, 5)
        self.excite = nn.Linear(5, 8)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.slope = nn.PReLU(12)
        self.fc1 = nn.Linear(12, 10)
        self.norm = nn.LayerNorm(10)
        self.fc2 = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x) * self.scale + self.shift) + self.where
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        x = self.slope(self.conv2(x)).mean((2, 3))
        value, gate = self.norm(self.fc1(x)).chunk(2, dim=1)
        return self.fc2(value * torch.sigmoid(gate))


@dataclass(frozen=True)
class Case:
    """A network of the zoo and the shape of its input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


ZOO: dict[str, Case] = {
    **{f"mlp-{a}": Case(lambda a=a: MLP(activation=a), (12,)) for a in ACTIVATIONS},
    "mlp-norm": Case(lambda: MLP(norm=True), (12,)),
    "mlp-no-bias": Case(lambda: MLP(bias=False), (12,)),
    **{f"cnn-{a}": Case(lambda a=a: ConvFlatten(a), (2, 8, 8)) for a in ACTIVATIONS},
    "cnn-pool": Case(ConvPool, (2, 9, 9)),
    "resnet20-pad": Case(lambda: ResNet20("pad"), (3, 16, 16)),
    "resnet20-conv": Case(lambda: ResNet20("conv"), (3, 16, 16)),
    "mixed": Case(Mixed, (3, 8, 8)),
    "conv1d": Case(Conv1dNet, (3, 10)),
    "conv3d": Case(Conv3dNet, (2, 5, 5, 5)),
    "called-twice": Case(CalledTwice, (12,)),
    "tied": Case(Tied, (12,)),
    "transposed": Case(Transposed, (2, 8, 8)),
    "attention": Case(Attention, (5, 6)),
    "lstm": Case(Recurrent, (5, 5)),
    "gated": Case(Gated, (3, 8, 8)),
}


def build(name: str, *, samples: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network of the zoo in float64 and eval mode with norms as after training, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = ZOO[name]
        model = case.build().double().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.5)
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        return model, torch.randn(samples, *case.shape, dtype=torch.float64)
