"""Methods that prune before a training, between several, or inside one."""

from prunus.allocation import ERK, Global, Uniform
from prunus.courses import Dynamic, GradientGrowth, Gradual, RandomGrowth
from prunus.granularity import Node
from prunus.joint import EdgePopup
from prunus.presets.preset import Preset
from prunus.recipe import Recipe
from prunus.schedules import AtInit, Rewinding
from prunus.scores import SNIP, Constant, GraSP, Magnitude, Movement, SynFlow
from prunus.selection import RandomK

__all__ = ["BEFORE_TRAINING", "INSIDE_TRAINING"]

ZHU = (
    "Zhu and Gupta (2018), To prune, or not to prune: exploring the efficacy of pruning for model "
    "compression"
)

BEFORE_TRAINING: dict[str, Preset] = {
    "random-init": Preset(
        Recipe(
            score=Constant(),
            allocation=Uniform(minimum=0),
            selection=RandomK(),
            schedule=AtInit(),
        ),
        "Yang et al. (2025), Random pruning over-parameterized neural networks can improve "
        "generalization: a training dynamics analysis (arXiv 2301.00335, 2023)",
        "before training: weights of each layer drawn uniformly, nested over densities",
    ),
    "snip": Preset(
        Recipe(score=SNIP(), allocation=Global(minimum=0), schedule=AtInit()),
        "Lee et al. (2019), SNIP: single-shot network pruning based on connection sensitivity",
        "before training: largest |weight · gradient| of all layers",
    ),
    "grasp": Preset(
        Recipe(score=GraSP(), allocation=Global(minimum=0), schedule=AtInit()),
        "Wang et al. (2020), Picking winning tickets before training by preserving gradient flow",
        "before training: largest weight · (Hessian · gradient) of all layers",
    ),
    "synflow": Preset(
        Recipe(score=SynFlow(), allocation=Global(minimum=0), schedule=AtInit(rounds=100)),
        "Tanaka et al. (2020), Pruning neural networks without any data by iteratively "
        "conserving synaptic flow",
        "before training, without labels: most flow along paths, in 100 rounds",
    ),
    "edge-popup": Preset(
        Recipe(
            score=Constant(),
            allocation=Uniform(minimum=0),
            selection=EdgePopup(),
            schedule=AtInit(),
        ),
        "Ramanujan et al. (2020), What's hidden in a randomly weighted neural network?",
        "a subnetwork of random weights that does without training, searched by gradients",
    ),
}

INSIDE_TRAINING: dict[str, Preset] = {
    "lottery": Preset(
        Recipe(allocation=Global(), schedule=Rewinding(rounds=5)),
        "Frankle and Carbin (2019), The lottery ticket hypothesis: finding sparse, trainable "
        "neural networks",
        "largest weights of all layers, in 5 rounds, each trained from the initial weights",
        least_squares=False,
    ),
    "gradual": Preset(
        Recipe(allocation=Global(), schedule=Gradual()),
        ZHU,
        "inside training: largest weights of all layers, ever fewer",
    ),
    "gradual-layer": Preset(
        Recipe(schedule=Gradual()),
        ZHU,
        "inside training: largest weights of each layer, ever fewer; the published form",
    ),
    "set": Preset(
        Recipe(
            score=Constant(),
            allocation=ERK(),
            selection=RandomK(),
            schedule=Dynamic(grow=RandomGrowth()),
        ),
        "Mocanu et al. (2018), Scalable training of artificial neural networks with adaptive "
        "sparse connectivity inspired by network science",
        "inside training, sparse throughout: smallest weights give way to others at random",
    ),
    "rigl": Preset(
        Recipe(
            score=Constant(),
            allocation=ERK(),
            selection=RandomK(),
            schedule=Dynamic(grow=GradientGrowth()),
        ),
        "Evci et al. (2020), Rigging the lottery: making all tickets winners",
        "inside training, sparse throughout: smallest weights give way to those of largest "
        "gradient",
    ),
    "movement": Preset(
        Recipe(score=Movement(), schedule=Gradual(soft=True)),
        "Sanh, Wolf, Rush (2020), Movement pruning: adaptive sparsity by fine-tuning",
        "inside fine-tuning: weights of each layer that training moves away from zero",
    ),
    "soft-filter": Preset(
        Recipe(
            granularity=Node(),
            score=Magnitude(side="producer", reduction="l2"),
            schedule=Gradual(start=0.0, soft=True),
        ),
        "He et al. (2018), Soft filter pruning for accelerating deep convolutional neural networks",
        "inside training: filters of largest L2 norm; removed ones learn on and may come back",
    ),
}
