"""What the consumers of a group read and give, from hooks and the modules themselves."""

import torch
from torch import Tensor, nn

from models import build
from prunus.coupling import Group


class Joined(nn.Module):
    """Two convolutions side by side, read by one convolution: columns of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 3, 3)
        self.both = nn.Conv2d(7, 5, 2)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], dim=1)
        return self.fc(torch.relu(self.both(y)).mean((2, 3)))


class Summed(nn.Module):
    """A residual sum of a convolution and a depthwise one, read by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.depth = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.point = nn.Conv2d(5, 5, 1)
        self.next = nn.Conv2d(5, 4, 2, bias=False)
        self.side, self.fc = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.point(torch.relu(self.depth(y))))
        return self.fc(torch.relu(self.next(y)).mean((2, 3))) + self.side(y.mean((2, 3)))


def net(name: str, samples: int = 9, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network of the zoo or of this file, in float64, and inputs."""
    own = {"joined": Joined, "summed": Summed}
    if name not in own:
        return build(name, samples=samples, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = own[name]().double().eval()
        return model, torch.randn(samples, 2, 6, 6, dtype=torch.float64)


def inputs_of(model: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The input of each of some modules in one forward pass."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(n).register_forward_pre_hook(
            lambda m, a, n=n: seen.__setitem__(n, a[0].detach().clone())
        )
        for n in names
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def scaled(module: nn.Module, values: Tensor, slot, factors: Tensor) -> Tensor:
    """The input of a consumer with every class's channels multiplied by its factor."""
    channel_last = isinstance(module, nn.Linear)
    groups = 1 if channel_last else module.groups
    line = torch.ones(module.weight.shape[1], dtype=values.dtype)
    line[slot.index] = factors[slot.unit]
    line = line.repeat(groups)
    return values * (line if channel_last else line.view(-1, *[1] * (values.ndim - 2)))


def given(module: nn.Module, values: Tensor) -> Tensor:
    """Outputs as (positions, channels)."""
    with torch.no_grad():
        out = module(values)
    if not isinstance(module, nn.Linear):
        out = out.movedim(1, -1)
    return out.reshape(-1, out.shape[-1])


def error_of(
    model: nn.Module,
    group: Group,
    dense: dict[str, Tensor],
    now: dict[str, Tensor],
    factors: Tensor,
) -> dict[str, float]:
    """{consumer: E‖outputs on `dense` − outputs on `now` with scaled classes‖²}."""
    found = {}
    for slot in group.slots:
        if slot.role == "out" or slot.layer not in group.consumers:
            continue
        module = model.get_submodule(slot.layer)
        after = given(module, scaled(module, now[slot.layer], slot, factors))
        missing = given(module, dense[slot.layer]) - after
        found[slot.layer] = float(missing.square().sum(1).mean())
    return found


def power_of(model: nn.Module, values: dict[str, Tensor]) -> dict[str, float]:
    """{consumer: E‖W x‖²}, without the bias."""
    found = {}
    for name, x in values.items():
        module = model.get_submodule(name)
        out = given(module, x) - (0 if module.bias is None else module.bias.detach())
        found[name] = float(out.square().sum(1).mean())
    return found
