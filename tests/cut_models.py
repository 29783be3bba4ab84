"""Networks whose channels meet norms, splits, pads and sizes written in the code."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Block


class NormMLP(nn.Module):
    """Linear layers with a layer norm (or an RMS norm) over the first hidden one."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, **options: float) -> None:
        super().__init__()
        self.fc1, self.norm = nn.Linear(6, 16), norm(16, **options)
        self.fc2, self.fc3 = nn.Linear(16, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.norm(self.fc1(x))))))


class ConvNeXt(nn.Module):
    """Depthwise convolution, layer norm over channels, expansion, shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 24), nn.Linear(24, 8)
        self.gamma = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class GroupNormCNN(nn.Module):
    """Group norms: several channels in each, and one in each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3), nn.GroupNorm(6, 6)
        self.conv3, self.norm3 = nn.Conv2d(6, 6, 3), nn.GroupNorm(6, 6, affine=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(F.relu(self.norm3(self.conv3(x))).mean((2, 3)))


class PaddedResNet(nn.Module):
    """Two stages with zero-padded shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(Block(6, 6, 1, "pad"), Block(6, 12, 2, "pad"))
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.conv(x))).mean((2, 3)))


class Chunked(nn.Module):
    """Halves of one convolution go different ways."""

    def __init__(self, how: str = "chunk") -> None:
        super().__init__()
        self.how = how
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.u, self.v = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.o = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if self.how == "chunk":
            p, q = x.chunk(2, 1)
        elif self.how == "split":
            p, q = x.split([8, 8], 1)
        else:
            p, q = x[:, :8], x[:, 8:]
        return self.o(F.relu(self.u(p) + self.v(q))).mean((2, 3))


class CrossStage(nn.Module):
    """A stage that only half of the channels pass, joined with the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.join, self.fc = nn.Conv2d(12, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept, passed = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([kept, F.relu(self.part(passed))], 1)
        return self.fc(F.relu(self.join(x)).mean((2, 3)))


class Written(nn.Module):
    """A width in the forward code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 36, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).view(-1, 216)
        return self.fc2(F.relu(self.fc1(x)))


class Sampling(nn.Module):
    """An encoder that draws its code."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean = nn.Linear(6, 12), nn.Linear(12, 3)
        self.spread, self.decode = nn.Linear(12, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.encode(x))
        mean = self.mean(x)
        return self.decode(mean + torch.randn_like(mean) * self.spread(x).exp())


class Pools(nn.Module):
    """Paddings of every form, pooling that meets borders, resampling."""

    def __init__(self, mode: str = "zeros", groups: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=groups, padding_mode=mode)
        self.c = nn.Conv2d(8, 6, 3, stride=2, padding=1, padding_mode=mode)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.silu(self.norm(self.a(x))), 3, 1, padding=1)
        x = F.interpolate(F.leaky_relu(self.b(x)), scale_factor=2.0)
        return self.fc(F.max_pool2d(torch.sigmoid(self.c(x)), 3, 2, padding=1).mean((2, 3)))


IMAGE = (3, 8, 8)
NETS = {
    "layer-norm": (NormMLP, (6,)),
    "rms-norm": (lambda: NormMLP(nn.RMSNorm, eps=1e-2), (6,)),
    "rms-norm-default": (lambda: NormMLP(nn.RMSNorm), (6,)),
    "convnext": (ConvNeXt, IMAGE),
    "group-norm": (GroupNormCNN, IMAGE),
    "padded": (PaddedResNet, IMAGE),
    "chunk": (Chunked, IMAGE),
    "split": (lambda: Chunked("split"), IMAGE),
    "slice": (lambda: Chunked("slice"), IMAGE),
    "cross-stage": (CrossStage, IMAGE),
    "written": (Written, IMAGE),
    "sampling": (Sampling, (6,)),
    **{
        f"pools-{mode}-{groups}": (lambda mode=mode, groups=groups: Pools(mode, groups), IMAGE)
        for mode in ("zeros", "circular", "reflect", "replicate")
        for groups in (1, 2, 8)
    },
}


def build(name: str, *, samples: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One of the networks in float64 and eval mode, norms as after training, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make, shape = NETS[name]
        model = make().double().eval()
        for module in model.modules():
            if getattr(module, "weight", None) is not None and "Norm" in type(module).__name__:
                nn.init.normal_(module.weight, 1.0, 0.3)
                if getattr(module, "bias", None) is not None:
                    nn.init.normal_(module.bias, 0.0, 0.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        return model, torch.randn(samples, *shape, dtype=torch.float64)
