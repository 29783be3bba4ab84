"""The methods of the literature as compositions, with their papers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from prunus.allocation import ERK, LAMP, Global, LeastVariance, Uniform
from prunus.check import unknown
from prunus.compensation import LeastSquares
from prunus.courses import Dynamic, GradientGrowth, Gradual, RandomGrowth
from prunus.granularity import Blocks, Edge, EdgePerRow, Experts, Node
from prunus.joint import OBS, EdgePopup, SparseGPT
from prunus.recipe import Recipe
from prunus.schedules import AtInit, Refine, Rewinding
from prunus.scores import (
    FPGM,
    OBD,
    SNIP,
    APoZ,
    BlockCosine,
    BlockGap,
    BNScale,
    Constant,
    Gate,
    GraSP,
    Magnitude,
    MeanActivation,
    Movement,
    OBSNode,
    ObsPrice,
    Reap,
    RemovalError,
    Sensitivity,
    Share,
    SynFlow,
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

__all__ = ["ADVICE", "PRESETS", "Measured", "Preset", "Recipes", "recipes", "resolve"]


@dataclass(frozen=True)
class Measured:
    """What a recipe left of the first layer of a 784-500-500-10 network on MNIST.

    Single weights at 157 of 784 into each output, nodes at 255 of 500; the mean of 5 draws where
    the recipe draws. Source: docs/which_selector.md, benchmarks/results/which_selector.json.

    Attributes:
        error: test error in % (dense: 1.69).
        error_ls: the same with `+ls`.
        layer_ls: E‖(W − W′)x‖² / E‖Wx‖² with `+ls`; None where it was not measured.
    """

    error: float
    error_ls: float
    layer_ls: float | None = None

    def __str__(self) -> str:
        layer = "" if self.layer_ls is None else f"; layer {self.layer_ls:.1e}"
        return f"{self.error:.2f} → {self.error_ls:.2f} %{layer}"


@dataclass(frozen=True)
class Preset:
    """A named recipe and where it comes from.

    Attributes:
        recipe: the composition.
        paper: the publication that proposes it.
        says: what it does, in one line.
        measured: what it left of one layer, or None.
        least_squares: False where `+ls` would say nothing: new values do not last.
    """

    recipe: Recipe
    paper: str
    says: str
    measured: Measured | None = None
    least_squares: bool = True


UAI = "Acharyya et al. (2021), Statistical mechanical analysis of neural network pruning"
HAN = "Han et al. (2015), Learning both weights and connections for efficient neural networks"

YE = "Ye et al. (2020), Good subnetworks provably exist: pruning via greedy forward selection"
YE_WU_LIU = (
    "Ye, Wu, Liu (2020), Greedy optimization provably wins the lottery: logarithmic number of "
    "winning tickets is enough"
)
ZHU = (
    "Zhu and Gupta (2018), To prune, or not to prune: exploring the efficacy of pruning for model "
    "compression"
)

SIPP = (
    "Baykal et al. (2022), SiPPing neural networks: sensitivity-informed provable pruning of "
    "neural networks"
)
PFP = "Liebenwein et al. (2020), Provable filter pruning for efficient neural networks"

PRESETS: dict[str, Preset] = {
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


# What benchmarks/results/which_selector.json and repulsion.json support, for `prunus list`.
# digits_cnn_edges and digits_cnn_nodes for two lines, mnist_lenet300_… for two.
ADVICE: tuple[str, ...] = (
    "Add +ls to every rule: least squares does the work. At 20 % of the weights it takes random "
    "draws from 40 to 2.8 % test error and magnitude from 15 to 1.7 %.",
    "obs leaves the smallest error in the layer (1.6e-3, against 7.3e-3 by magnitude-row+ls and "
    "1.3e-2 by dpp-edge+ls) and changes the fewest predictions; it beats DPP masks in test error "
    "at 10 % of the weights (1.78 against 2.37 %).",
    "magnitude-row+ls is nearly as good and cheap: from 20 % of the weights on its test error is "
    "not told apart from that of obs (1.70 against 1.76 %); at 10 % it is 2.32 against 1.78 %.",
    "Which score is best depends on the network: on LeNet-300-100 (dense 1.56 %) a tenth of the "
    "weights by obs-global leaves 1.72 %, by magnitude-global+ls 2.23, by obs 3.11, by "
    "gap-gradient+ls 2.60 and obd+ls 2.74, both in five rounds; a quarter by nodes leaves 2.80 % "
    "by obs-node+ls, 7.27 by random-node+ls and 10.78 by apoz+ls.",
    "Inside training of one length, gradual is best where the dense network fits: LeNet-300-100 on "
    "MNIST at 2 % of the weights errs by 2.84 % (dense 1.56), a lottery ticket by 4.09, rigl by "
    "4.39, set by 5.04, gradual-layer by 5.38, random masks that stay by 6.35 in layers as rigl "
    "has them and by 27 where every layer keeps as much.",
    "sparsegpt+ls is the quick way for wide layers: one sweep, layer error 8.7e-3.",
    "dpp-edge lies between random and magnitude. Its repulsion is nearly void: of the 10 to 208 "
    "nats that set it apart from uniform draws at most 0.9 are repulsion, the rest are unequal "
    "odds, with which dpp-poisson draws for a fraction of the cost.",
    "dpp-node+ls is not told apart from random-node+ls (2.07 against 2.00 % at half of the nodes); "
    "importance-node+ls is level or better (1.88 %).",
    "Where few nodes stay and +ls follows, forward-node and obs-node leave least: the MNIST MLP "
    "(dense 1.69 %) errs at 12.5, 6.25 and 3.125 % of the weights in 2.71, 4.19 and 8.05 % by "
    "forward-node, 2.62, 3.98 and 8.59 % by obs-node, 3.96, 7.38 and 16.04 % by random draws, "
    "4.92, 12.19 and 25.33 % by importance. From half of the weights on forward-node is not told "
    "apart from importance-node. Trained on for 2 epochs it beats a small dense network of the "
    "same widths: 2.33 against 2.80 % at 12.5 %, 5.26 against 6.15 % at 3.125 %.",
    "Without +ls factors on the nodes help: at half of one layer's nodes greedy-global leaves "
    "1.79 %, importance-node 21.67 %. On the digits CNN they do so down to a quarter of the "
    "weights; at 12 % they do not (51 % by greedy-scales, 6 % with +ls).",
    "Deep networks with few nodes: inputs='pruned' does more than the rule. On the digits CNN at "
    "6 % of the weights it takes forward-node+ls from 20.80 to 6.87 % test error, "
    "importance-node+ls from 29.67 to 9.27 %.",
    "Without any training, obs-global goes farthest: on the digits CNN (dense 0.89 %) it leaves "
    "1.20, 1.91 and 15.08 % test error at 20, 10 and 5 % of the weights, magnitude-global+ls 1.60, "
    "11.62 and 72.55 %, obd+ls in one shot 1.95, 21.46 and 74.50 %.",
    "Of nodes the score matters little once +ls is on: at half of the digits CNN's weights all lie "
    "between 0.89 and 1.42 %, random-node+ls being the 1.42 %; at a quarter taylor-2017+ls is told "
    "apart from it (1.73 against 3.02 %); forward-node+ls has the lowest mean (1.46 %). Without "
    "+ls greedy-global leaves least (1.69 and 7.89 %), of scores thinet (2.84 and 29.58 %).",
    "sipp and pfp are for their statements (certify with calibration=), not for accuracy: at 20 % "
    "of the digits MLP's weights (dense 2.75 %) sipp leaves 85 % test error, sipp-row 42, "
    "sipp-random 13, sipp-row+ls 10.7 and magnitude-row+ls 4.6 %; on the digits CNN (dense 0.89 %) "
    "half of the weights by sipp-row leave 65 %, by magnitude-row 9.9 %. As a set of nodes for +ls "
    "pfp is level with importance-node (LeNet-300-100 at 15 % of the nodes: 19.7 and 21.5 %).",
    "edge-popup needs no training: on the digits MLP (trained: 2.97 %) its subnetworks of random "
    "weights are at 2.84 and 3.90 % with 10 and 5 % of them, weights trained on a random mask at "
    "4.39 and 20 %. At 2 % let the layers share, EdgePopup(across=True): 4.61 against 5.59 %.",
    "Bandwidths of the literature are off the scale of the data: at 10/60000 per sum the node "
    "kernel is the identity to 1e-12, so that DIVNET draws uniformly, and the edge kernel is 0.90 "
    "off its diagonal on average. 'median', the default, is on it.",
)


class Recipes(Mapping[str, Recipe]):
    """{name: Recipe}: every preset, and with `+ls` least squares on the same masks.

    A preset whose parts refuse least squares exists without it alone.
    """

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._known:
            raise KeyError(str(unknown("recipe", str(name), self)))
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @cached_property
    def _known(self) -> dict[str, Recipe]:
        found = {}
        for name, preset in PRESETS.items():
            found[name] = preset.recipe
            if not preset.least_squares:
                continue
            try:
                found[f"{name}+ls"] = replace(preset.recipe, compensation=LeastSquares())
            except ValueError:  # refused by a part, with its reason
                continue
        return found

    def __repr__(self) -> str:
        return f"prunus.recipes({', '.join(self)})"


recipes = Recipes()


def resolve(recipe: Any) -> tuple[str, Recipe]:
    """(name, Recipe) of a name or a Recipe; a Recipe that no preset equals is called by its digest.

    Raises:
        ValueError: the name is unknown (near matches are suggested).
        TypeError: neither a name nor a Recipe.
    """
    if isinstance(recipe, Recipe):
        for name in recipes:
            if recipes[name].digest == recipe.digest:
                return name, recipe
        return f"recipe-{recipe.digest[:8]}", recipe
    if not isinstance(recipe, str):
        raise TypeError(
            f"`recipe` must be a name in prunus.recipes or a Recipe, got {type(recipe).__name__}."
        )
    if recipe not in recipes:
        raise unknown("recipe", recipe, recipes)
    return recipe, recipes[recipe]
