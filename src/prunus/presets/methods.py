"""The methods of the literature as compositions, with their papers."""

from prunus.allocation import ERK, LAMP, Global, LeastVariance
from prunus.compensation import LeastSquares
from prunus.granularity import Blocks, Edge, EdgePerRow, Experts, Node
from prunus.joint import OBS, SparseGPT
from prunus.presets.preset import Measured, Preset
from prunus.presets.training import BEFORE_TRAINING, INSIDE_TRAINING
from prunus.recipe import Recipe
from prunus.schedules import Refine
from prunus.scores import (
    FPGM,
    OBD,
    APoZ,
    BlockCosine,
    BlockGap,
    BNScale,
    Constant,
    Gate,
    Magnitude,
    MeanActivation,
    OBSNode,
    ObsPrice,
    Reap,
    RemovalError,
    Sensitivity,
    Share,
    Taylor,
    Taylor2017,
    ThiNet,
)
from prunus.selection import (
    KDPP,
    DPPMap,
    DPPPoisson,
    ForwardNodes,
    Imitation,
    Proportional,
    RandomK,
)

__all__ = ["PRESETS"]


UAI = "Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning"
HAN = "Han et al. (2015), Learning both weights and connections for efficient neural networks"

YE = "Ye et al. (2020), Good subnetworks provably exist: pruning via greedy forward selection"
YE_WU_LIU = (
    "Ye, Wu, Liu (2020), Greedy optimization provably wins the lottery: logarithmic number of "
    "winning tickets is enough"
)

SIPP = (
    "Baykal et al. (2022), SiPPing neural networks: sensitivity-informed provable pruning of "
    "neural networks"
)
PFP = "Liebenwein et al. (2020), Provable filter pruning for efficient neural networks"

SCORED: dict[str, Preset] = {
    "random-edge": Preset(
        Recipe(granularity=EdgePerRow(), score=Constant(), selection=RandomK()),
        UAI,
        "weights of each output drawn uniformly",
        Measured(39.79, 2.78, 6.7e-2),
    ),
    "random-node": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=RandomK()),
        UAI,
        "nodes drawn uniformly",
        Measured(4.66, 2.00),
    ),
    "magnitude": Preset(Recipe(granularity=Edge()), HAN, "largest weights of each layer"),
    "magnitude-row": Preset(
        Recipe(granularity=EdgePerRow()),
        UAI,
        "largest weights into each output",
        Measured(15.08, 1.70, 7.3e-3),
    ),
    "magnitude-global": Preset(
        Recipe(granularity=Edge(), allocation=Global()), HAN, "largest weights of all layers"
    ),
    "magnitude-erk": Preset(
        Recipe(granularity=Edge(), allocation=ERK()),
        "Evci et al. (2020), Rigging the lottery: making all tickets winners",
        "largest weights, layers as dense as Erdős–Rényi graphs",
    ),
    "magnitude-lamp": Preset(
        Recipe(granularity=Edge(), allocation=LAMP()),
        "Lee et al. (2021), Layer-adaptive sparsity for the magnitude-based pruning",
        "largest share of what their layer still holds",
    ),
    "wanda": Preset(
        Recipe(granularity=EdgePerRow(), score=RemovalError()),
        "Sun et al. (2024), A simple and effective pruning approach for large language models",
        "largest |weight| · input norm into each output",
        Measured(24.91, 3.05, 2.0e-2),
    ),
    "wanda-layer": Preset(
        Recipe(granularity=Edge(), score=RemovalError()),
        "Sun et al. (2024), A simple and effective pruning approach for large language models; "
        "with the layer, in place of each output, as the comparison group",
        "largest |weight| · input norm of each layer",
    ),
    "gap-gradient": Preset(
        Recipe(score=Sensitivity(), allocation=Global()),
        "derived in docs/gap.md",
        "weights of all layers whose removal moves the outputs most, to first order",
    ),
    "variance-optimal": Preset(
        Recipe(score=Sensitivity(), allocation=LeastVariance(), selection=Proportional()),
        "derived in docs/gap.md; Horvitz and Thompson (1952), A generalization of sampling without "
        "replacement from a finite universe",
        "weights drawn with the odds of least variance of the outputs, and scaled up by them",
    ),
    "obd": Preset(
        Recipe(score=OBD(), allocation=Global(), schedule=Refine(rounds=20)),
        "LeCun, Denker, Solla (1989), Optimal brain damage",
        "weights of all layers whose removal raises the loss most, in 20 rounds; no labels",
    ),
    "obs-global": Preset(
        Recipe(score=ObsPrice(), allocation=Global(), compensation=LeastSquares(ridge=1e-4)),
        "Hassibi and Stork (1993), Optimal brain surgeon; Frantar and Alistarh (2022), Optimal "
        "brain compression; the slopes derived in docs/second_order.md",
        "weights of all layers that the others make up for least, as the outputs feel it",
    ),
    "importance-node": Preset(
        Recipe(granularity=Node()),
        UAI,
        "nodes with the largest L1 norm of outgoing weights",
        Measured(21.67, 1.88),
    ),
    "l1-filter": Preset(
        Recipe(granularity=Node(), score=Magnitude(side="producer")),
        "Li et al. (2017), Pruning filters for efficient ConvNets",
        "filters with the largest L1 norm",
    ),
    "fpgm": Preset(
        Recipe(granularity=Node(), score=FPGM()),
        "He et al. (2019), Filter pruning via geometric median for deep convolutional neural "
        "networks acceleration",
        "filters farthest from all others of their layer",
    ),
    "bn-scale": Preset(
        Recipe(granularity=Node(), score=BNScale()),
        "Liu et al. (2017), Learning efficient convolutional networks through network slimming",
        "channels to which batch norm gives the largest scale",
    ),
    "apoz": Preset(
        Recipe(granularity=Node(), score=APoZ()),
        "Hu et al. (2016), Network trimming: a data-driven neuron pruning approach towards "
        "efficient deep architectures",
        "nodes that are least often zero",
    ),
    "mean-activation": Preset(
        Recipe(granularity=Node(), score=MeanActivation()),
        "Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient "
        "inference",
        "nodes with the largest mean activation",
    ),
    "thinet": Preset(
        Recipe(granularity=Node(), score=ThiNet()),
        "Luo, Wu, Lin (2017), ThiNet: a filter level pruning method for deep neural network "
        "compression",
        "nodes without which the next layers' outputs would change most, greedily",
    ),
    "obs-node": Preset(
        Recipe(granularity=Node(), score=OBSNode()),
        "Hassibi and Stork (1993), Optimal brain surgeon; Kurtic, Frantar, Alistarh (2023), ZipLM",
        "nodes that the others can make up for least, one by one; add +ls",
        Measured(4.96, 1.81),
    ),
    "greedy-forward": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=Imitation(steps="uniform")),
        YE,
        "nodes whose equally weighted sum imitates all of them, greedily; add +ls",
        Measured(2.26, 2.00),
    ),
    "greedy-imitation": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=Imitation(steps="line")),
        YE_WU_LIU,
        "nodes whose weighted mean imitates all of them, along lines; add +ls",
        Measured(1.97, 1.89),
    ),
    "greedy-scales": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=Imitation(steps="refit")),
        "derived in docs/node_selection.md; " + YE_WU_LIU,
        "nodes that imitate all of them when each has a factor of its own; add +ls",
        Measured(1.95, 1.89),
    ),
    "greedy-global": Preset(
        Recipe(
            granularity=Node(),
            score=Constant(),
            selection=Imitation(steps="refit", metric="output"),
        ),
        "derived in docs/node_selection.md; " + YE_WU_LIU,
        "greedy-scales with the error counted at the network's outputs, to first order",
        Measured(1.79, 1.75),
    ),
    "forward-node": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=ForwardNodes()),
        "derived in docs/node_selection.md; Chen, Billings, Luo (1989), Orthogonal least squares "
        "methods and their application to non-linear system identification",
        "nodes from which least squares gains most, one by one; add +ls, and inputs='pruned'",
        Measured(4.84, 1.82),
    ),
    "taylor": Preset(
        Recipe(granularity=Node(), score=Taylor(), allocation=Global()),
        "Molchanov et al. (2019), Importance estimation for neural network pruning",
        "nodes of all layers whose removal changes the samples' losses most, to first order",
    ),
    "taylor-2017": Preset(
        Recipe(granularity=Node(), score=Taylor2017(), allocation=Global()),
        "Molchanov et al. (2017), Pruning convolutional neural networks for resource efficient "
        "inference",
        "nodes with the largest mean |activation · gradient|, over its norm in the layer",
    ),
    "gate": Preset(
        Recipe(granularity=Node(), score=Gate(), allocation=Global()),
        "derived in docs/second_order.md; LeCun, Denker, Solla (1989), Optimal brain damage",
        "nodes of all layers whose removal raises the loss most, to second order; no labels",
    ),
}

DRAWN_AND_ELIMINATED: dict[str, Preset] = {
    "sipp": Preset(
        Recipe(score=Share(), allocation=Global()),
        SIPP,
        "weights of all layers with the largest share of their output on any sample; use it for "
        "its statements, not for accuracy: it collapses below half of the weights",
    ),
    "sipp-row": Preset(
        Recipe(granularity=EdgePerRow(), score=Share()),
        SIPP,
        "weights with the largest share of each output on any sample, with bounds by layer",
    ),
    "sipp-random": Preset(
        Recipe(
            granularity=EdgePerRow(),
            score=Share(),
            selection=Proportional(smallest=0.0, by_sign=True, design="pivotal"),
        ),
        SIPP,
        "weights of each output drawn by their largest share and scaled up: unbiased, with bounds "
        "over the draw; the best uncompensated form at few weights",
    ),
    "pfp": Preset(
        Recipe(granularity=Node(), score=Share()),
        PFP,
        "nodes with the largest share of any output on any sample, with bounds by layer",
    ),
    "pfp-random": Preset(
        Recipe(
            granularity=Node(),
            score=Share(),
            selection=Proportional(smallest=0.0, design="pivotal"),
        ),
        PFP,
        "nodes drawn by their largest share and scaled up: unbiased",
    ),
    "dpp-edge": Preset(
        Recipe(granularity=EdgePerRow(), score=Constant(), selection=KDPP()),
        UAI,
        "a diverse set of weights into each output, by a k-DPP",
        Measured(33.67, 1.80, 1.3e-2),
    ),
    "dpp-node": Preset(
        Recipe(granularity=Node(), score=Constant(), selection=KDPP()),
        "Mariet and Sra (2016), Diversity networks (DIVNET)",
        "a diverse set of nodes, by a k-DPP",
        Measured(4.16, 2.07),
    ),
    "dpp-map": Preset(
        Recipe(granularity=EdgePerRow(), score=Constant(), selection=DPPMap()),
        "Chen, Zhang, Zhou (2018), Fast greedy MAP inference for determinantal point process",
        "the greedy mode of dpp-edge's k-DPP; small layer error",
    ),
    "dpp-poisson": Preset(
        Recipe(granularity=EdgePerRow(), score=Constant(), selection=DPPPoisson()),
        "derived in docs/sampling_dpps.md; " + UAI,
        "dpp-edge's inclusion probabilities without its repulsion, which is next to none",
    ),
    "obs": Preset(
        Recipe(granularity=EdgePerRow(), score=Constant(), selection=OBS()),
        "Hassibi and Stork (1993), Second order derivatives for network pruning: optimal brain "
        "surgeon; Frantar and Alistarh (2022), Optimal brain compression",
        "weights of each output removed one by one, each time the one that costs least",
        Measured(1.76, 1.76, 1.6e-3),
    ),
    "sparsegpt": Preset(
        Recipe(granularity=Edge(), score=Constant(), selection=SparseGPT()),
        "Frantar and Alistarh (2023), SparseGPT: massive language models can be accurately pruned "
        "in one-shot",
        "one sweep over the columns that prunes and makes up for it to the right",
        Measured(1.94, 1.78, 8.7e-3),
    ),
}

WHOLE_PARTS: dict[str, Preset] = {
    "block-cosine": Preset(
        Recipe(granularity=Blocks(), score=BlockCosine()),
        "Men et al. (2024), ShortGPT: layers in large language models are more redundant than you "
        "expect",
        "whole residual blocks that turn their stream least go; one pass",
    ),
    "block-gap": Preset(
        Recipe(granularity=Blocks(), score=BlockGap()),
        "Song et al. (2024), SLEB: streamlining LLMs through redundancy verification and "
        "elimination of transformer blocks",
        "whole residual blocks, ever the one without which the output changes least",
    ),
    "reap": Preset(
        Recipe(granularity=Experts(), score=Reap()),
        "Lasby et al. (2025), REAP the experts: why pruning prevails for one-shot MoE compression",
        "whole experts of mixture layers whose gated outputs are small where they are used",
    ),
}

# In the order in which they are listed.
PRESETS: dict[str, Preset] = {
    **SCORED,
    **BEFORE_TRAINING,
    **DRAWN_AND_ELIMINATED,
    **INSIDE_TRAINING,
    **WHOLE_PARTS,
}
