"""Random networks of everything that certificates have a rule for, and random changes of them."""

import copy
import random

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["RandomNetwork", "changed"]

ACTIVATIONS = (
    lambda d: nn.ReLU(inplace=d), lambda d: nn.LeakyReLU(0.3, inplace=d), lambda d: nn.Tanh(),
    lambda d: nn.ELU(inplace=d), lambda d: nn.SiLU(inplace=d), lambda d: nn.GELU(),
    lambda d: nn.Softplus(), lambda d: nn.Hardtanh(inplace=d), lambda d: nn.Sigmoid(),
)  # fmt: skip
FUNCTIONS = (
    torch.relu, torch.tanh, torch.sigmoid, F.relu_, F.gelu, F.softplus, torch.tanh_,
    lambda x: F.leaky_relu(x, 0.2, True), lambda x: F.elu(x, inplace=True),
    lambda x: F.hardtanh(x), lambda x: x.relu_(), lambda x: x.tanh(),
)  # fmt: skip
MODES = ("zeros", "circular", "reflect", "replicate")


class RandomNetwork(nn.Module):
    """Layers, activations, pooling and norms in a random order with random branches.

    Attributes:
        shape: of one input.
    """

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        images = draw.random() < 0.6
        self.shape = (draw.randint(1, 3), draw.randint(4, 6), draw.randint(4, 6)) if images else (
            draw.randint(2, 7),)  # fmt: skip
        self.steps, self.parts = [], nn.ModuleList()
        x = torch.zeros(2, *self.shape)
        for _ in range(draw.randint(2, 5)):
            x = self._layer(draw, x)
            if draw.random() < 0.3:
                x = self._add(("module", self._norm(x)), x)
            x = self._add(self._activation(draw), x)
            if draw.random() < 0.5:
                x = self._branch(draw, x)
            if x.ndim == 4 and min(x.shape[2:]) > 2 and draw.random() < 0.3:
                x = self._add(("module", self._pool(draw)), x)
        x = self._flat(draw, x)
        self._add(("module", self._keep(nn.Linear(x.shape[1], draw.randint(2, 4)))), x)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.3, 2)
                module.weight.data.normal_(1, 0.3)
                module.bias.data.normal_(0, 0.3)
        self.eval()

    def forward(self, x):
        for kind, what in self.steps:
            x = self._step(kind, what, x)
        return x

    def _step(self, kind, what, x):
        if kind == "module":
            return self.parts[what](x)
        if kind == "function":
            return what(x)
        if kind == "sum":  # both branches read x, the first perhaps after writing into it
            first = self._along(what[0], x)
            return first + self._along(what[1], x)
        if kind == "in-place sum":
            x = self.parts[what[0]](x)
            x += self._along(what[1], x)
            return x
        return torch.cat([self._along(branch, x) for branch in what], dim=1)

    def _along(self, steps, x):
        for kind, what in steps:
            x = self._step(kind, what, x)
        return x

    def _keep(self, module):
        self.parts.append(module.eval())
        return len(self.parts) - 1

    def _add(self, step, x):
        self.steps.append(step)
        with torch.no_grad():
            return self._step(*step, x.clone())

    def _layer(self, draw, x):
        if x.ndim == 2:
            step = ("module", self._keep(nn.Linear(x.shape[1], draw.randint(1, 9))))
        else:
            groups = draw.choice([g for g in (1, 1, x.shape[1]) if x.shape[1] % g == 0])
            step = ("module", self._keep(nn.Conv2d(
                x.shape[1], groups * draw.randint(1, 3), draw.choice((1, 2, 3)),
                draw.choice((1, 1, 2)), draw.randint(0, 2), draw.choice((1, 1, 2)), groups,
                draw.random() < 0.7, draw.choice(MODES),
            )))  # fmt: skip
        try:
            return self._add(step, x)
        except (RuntimeError, ValueError):  # padding or taps beyond the image
            self.steps.pop()
            return x

    def _norm(self, x):
        return self._keep((nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d)(x.shape[1]))

    def _activation(self, draw):
        if draw.random() < 0.5:
            return "module", self._keep(draw.choice(ACTIVATIONS)(draw.random() < 0.6))
        return "function", draw.choice(FUNCTIONS)

    def _pool(self, draw):
        kernel, stride = draw.choice((2, 3)), draw.choice((1, 2, 3))
        ceil, pad = draw.random() < 0.5, draw.randint(0, 1)
        return self._keep(draw.choice((
            lambda: nn.MaxPool2d(kernel, stride, pad, ceil_mode=ceil),
            lambda: nn.AvgPool2d(kernel, stride, pad, ceil, draw.random() < 0.5,
                                 draw.choice((None, 2))),
            lambda: nn.AdaptiveAvgPool2d((draw.randint(1, 3), draw.randint(1, 3))),
        ))())  # fmt: skip

    def _branch(self, draw, x):
        width = x.shape[1]

        def layer(outs):
            if x.ndim == 2:
                return ("module", self._keep(nn.Linear(width, outs)))
            return ("module", self._keep(nn.Conv2d(width, outs, 3, padding=1)))

        kind = draw.choice(("sum", "sum", "in-place sum", "cat", "broadcast"))
        act = self._activation(draw)
        if kind == "sum":
            steps = draw.choice(([act, layer(width)], [layer(width), act], [act]))
            return self._add(("sum", draw.choice(((steps, []), ([], steps)))), x)
        if kind == "in-place sum":
            return self._add(("in-place sum", (layer(width)[1], [act, layer(width)])), x)
        if kind == "cat":
            return self._add(("cat", ([layer(draw.randint(1, 3)), act], [])), x)
        narrow = [layer(1)] if x.ndim == 2 else [
            layer(width), ("module", self._keep(nn.AdaptiveAvgPool2d(1)))]  # fmt: skip
        return self._add(("sum", ([layer(width)], narrow)), x)

    def _flat(self, draw, x):
        if x.ndim == 2:
            return x
        return self._add(draw.choice((
            ("function", lambda x: x.flatten(1)), ("function", lambda x: x.mean((2, 3))),
            ("function", lambda x: x.view(x.size(0), -1)),
            ("module", self._keep(nn.Flatten())),
        )), x)  # fmt: skip


def changed(model, seed):
    """A copy with weights removed, moved or left, biases and norms perhaps changed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            way, weight = (
                draw.choice(("thin", "thin", "move", "leave", "empty")),
                module.weight.data,
            )
            if way == "thin":
                weight[weight.abs() < weight.abs().flatten().quantile(draw.uniform(0.1, 0.9))] = 0
            elif way == "move":
                weight += 0.1 * torch.randn_like(weight)
            elif way == "empty" and draw.random() < 0.3:
                weight.zero_()
            if module.bias is not None and draw.random() < 0.3:
                module.bias.data += 0.1 * torch.randn_like(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and draw.random() < 0.3:
            module.running_mean += 0.05
            module.weight.data *= 0.9
    return other
