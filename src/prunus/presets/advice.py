"""Which recipe for what, as the kept records support it."""

__all__ = ["ADVICE"]

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
    "weights by obs-global leaves 1.72 %, by magnitude-global+ls 2.23, by obs 3.11, by gap- "
    "gradient+ls 2.60 and obd+ls 2.74, both in five rounds; a twentieth 2.17 % by obs-global, "
    "3.44 by gap-gradient+ls in five rounds, 5.45 by magnitude-global+ls at once and 16.29 in "
    "rounds, which hurt it; a quarter by nodes leaves 2.80 % by obs-node+ls, 7.27 by random- "
    "node+ls and 10.78 by apoz+ls, half 1.76, 2.77 and 4.61.",
    "Inside training of one length, gradual is best where the dense network fits: LeNet-300-100 on "
    "MNIST at 2 % of the weights errs by 2.84 % (dense 1.56), a lottery ticket by 4.09, rigl by "
    "4.39, set by 5.04, gradual-layer by 5.38, random masks that stay by 6.35 in layers as rigl "
    "has them and by 27 where every layer keeps as much. On the digits CNN (dense 0.84) at 5 % "
    "rigl (1.60), gradual (1.69) and set (1.73) are not told apart; random masks err by 3.33.",
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
    "11.62 and 72.55 %, obd+ls in one shot 1.95, 21.46 and 74.50 %. Five rounds take "
    "gap-gradient+ls from 29.84 to 3.86 % at 10 %, and do little for nodes.",
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
    "4.39 and 20 %. At 2 % let the layers share, EdgePopup(across=True): 4.61 against 5.59 %. "
    "Elsewhere it stays above training: with 10 % of the weights 4.10 % on MNIST after one epoch "
    "(trained for three: 1.90 %), 1.95 % on the digits CNN with norms='batch' (0.80 %).",
    "Bandwidths of the literature are off the scale of the data: at 10/60000 per sum the node "
    "kernel is the identity to 1e-12, so that DIVNET draws uniformly, and the edge kernel is 0.90 "
    "off its diagonal on average. 'median', the default, is on it.",
)
