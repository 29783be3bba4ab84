"""
What is guaranteed for a pruned network
=======================================

A CNN on digits loses most of its parameters. Images that it has not seen say with 95 % confidence
how many predictions change at most. The bound without data, over a whole ball of inputs, is true
and says nothing here, which the certificate says last.
"""

import warnings

import torch
from _shipping import SMALL, fit
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.bench import load_data

digits = load_data("digits")
x, y, x_test = digits.x_train, digits.y_train, digits.x_test

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
fit(model, lambda net, i: F.cross_entropy(net(x[i]), y[i]), len(x), epochs=3 if SMALL else 15)

# %%
# Pruned with the training images; certified with the others.

pruned = prunus.prune(model, "importance-node+ls", 0.3, data=x)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of vacuous bounds, which the certificate itself names
    certificate = pruned.certify(x_test)
print(certificate.summary())

# %%
# The same as a notebook shows it, with the gaps that were measured.

certificate
