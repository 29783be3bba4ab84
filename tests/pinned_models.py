"""Small networks whose forward code holds to the numbers of some of their channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Flattened(nn.Module):
    """Convolutions whose maps are flattened to a written length."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3)
        self.f1, self.f2 = nn.Linear(48, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.c2(F.relu(self.c1(x)))), 2)
        return self.f2(F.relu(self.f1(x.view(-1, 48))))


class Reshaped(nn.Module):
    """Features that become channels by positions, and features again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 64), nn.Conv1d(8, 10, 3, padding=1)
        self.c, self.d = nn.Linear(80, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x)).reshape(len(x), 8, 8)))
        return self.d(F.relu(self.c(x.reshape(len(x), 80))))


class Split(nn.Module):
    """A layer whose outputs are split by written numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 48), nn.Linear(16, 20), nn.Linear(32, 20)
        self.d, self.e = nn.Linear(20, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.a(x)).split([16, 32], dim=1)
        return self.e(F.relu(self.d(F.relu(self.b(one)) + F.relu(self.c(other)))))


class Halves(nn.Module):
    """Two layers that may lose channels, but equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(12, 24)
        self.c, self.d = nn.Linear(24, 16), nn.Linear(24, 16)
        self.e = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, other = F.relu(self.a(x)), F.relu(self.b(x))
        if one.shape != other.shape:
            raise ValueError(f"widths {one.shape[1]} and {other.shape[1]}")
        return self.e(F.relu(self.c(one) + self.d(other)))


class Shuffled(nn.Module):
    """Groups of channels that are mixed by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=4)
        self.c3, self.f = nn.Conv2d(16, 24, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c2(F.relu(self.c1(x))))
        n, _, h, w = x.shape
        x = x.view(n, 4, 4, h, w).transpose(1, 2).reshape(n, 16, h, w)
        return self.f(F.relu(self.c3(x)).mean((2, 3)))


class Written(nn.Module):
    """Results written in place, into a tensor of a written width and over some channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 16)
        self.d = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        F.relu_(x)
        x[:, 16:].mul_(0.5)
        out = x.new_zeros(len(x), 24)
        out[:] = F.relu(self.b(x))
        return self.d(F.relu(self.c(out)))


class Shared(nn.Module):
    """A layer that runs twice, whose outputs are viewed at a written width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 32), nn.Linear(32, 32), nn.Linear(32, 16)
        self.d = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))
        return self.d(F.relu(self.c(x.view(-1, 32))))


class Residual(nn.Module):
    """A residual block with batch norm before a written flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.a1 = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, padding=1)
        self.norm, self.a2 = nn.BatchNorm2d(12), nn.Conv2d(12, 12, 3, padding=1)
        self.d, self.f, self.g = nn.Conv2d(12, 24, 3), nn.Linear(96, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(x))
        x = F.relu(self.d(F.relu(x + self.a2(F.relu(self.norm(self.a1(x)))))))
        return self.g(F.relu(self.f(F.adaptive_avg_pool2d(x, 2).view(-1, 96))))


class Depthwise(nn.Module):
    """Separable convolutions before a written flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.d = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16)
        self.q, self.e = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, groups=24)
        self.f, self.g = nn.Linear(24, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.e(F.relu6(self.q(F.relu6(self.d(F.relu6(self.p(x))))))))
        return self.g(F.relu(self.f(x.mean((2, 3)).reshape(-1, 24))))


class Attention(nn.Module):
    """Heads of a written number and width, and a feed-forward part viewed at its width."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 40), nn.Linear(40, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (z.view(n, t, 4, 4).transpose(1, 2) for z in self.qkv(x).split(16, -1))
        y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        x = x + self.o(y.transpose(1, 2).reshape(n, t, 16))
        x = x + self.down(F.relu(self.up(x)).view(n, t, 40))
        return self.head(x.mean(1))


class Joined(nn.Module):
    """Two branches whose joint width is written, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.u, self.c = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.o = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        u = F.relu(self.u(F.relu(self.b(a))))
        return self.o(F.relu(self.c(torch.cat([a, u], 1).view(len(x), 16, 8, 8))))


# The inputs' shape, and the layers whose channels the code holds to.
NETS: dict[type[nn.Module], tuple[tuple[int, ...], set[str]]] = {
    Flattened: ((1, 10, 10), {"c2"}),
    Reshaped: ((12,), {"a", "b"}),
    Split: ((12,), {"a"}),
    Halves: ((12,), {"a", "b"}),
    Shuffled: ((3, 8, 8), {"c2"}),
    Written: ((12,), {"a", "b"}),
    Shared: ((12,), {"a", "b"}),
    Residual: ((3, 8, 8), {"d"}),
    Depthwise: ((3, 8, 8), {"q", "e"}),
    Attention: ((5, 16), {"qkv", "up"}),
    Joined: ((3, 8, 8), {"a", "u"}),
}


def build(kind: type[nn.Module], samples: int = 24) -> tuple[nn.Module, Tensor]:
    """A network in double precision, whose norms have seen data, and a batch for it."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(samples, *NETS[kind][0], generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind().double()
    model(x)
    return model.eval(), x
