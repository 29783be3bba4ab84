"""What pages and advice say of LeNet-300-100 is what the kept records show."""

import itertools
import json
import re
import statistics
from pathlib import Path

import pytest

from prunus.bench.statistics.intervals import holm, paired
from prunus.presets import ADVICE

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def table_of(page: str, title: str) -> dict[str, list[str]]:
    """{name in the first cell: the numbers of its line} of the table under a title."""
    lines = (ROOT / "docs" / page).read_text().replace("−", "-").partition(title)[2].splitlines()
    found = {}
    for line in itertools.takewhile(lambda own: own.startswith("|"), lines[2:]):
        name, *cells = line.strip("|").split("|")
        found[name.strip(" `")] = re.findall(r"-?[0-9]+\.[0-9]+", " ".join(cells))
    assert len(found) > 1
    return found


Errors = dict[tuple[str, str, float], dict[int, float]]  # {(recipe, schedule, density): {seed: %}}
ROUNDS = "Refine(rounds=5)"


def errors_of(*folders: str) -> Errors:
    """Test errors after pruning and before any training; five networks each."""
    found: Errors = {}
    for folder in folders:
        for line in (RESULTS / folder / "records.jsonl").read_text().splitlines():
            row = json.loads(line)
            kind = (row["recipe"], row["schedule"], row["density_asked"])
            assert row["seed"] not in found.setdefault(kind, {}) or "random" in row["recipe"]
            found[kind][row["seed"]] = 100 * row["after"]["test_error"]
    assert {len(own) for own in found.values()} == {5}
    return found


def mean(own: dict[int, float]) -> str:
    return f"{statistics.mean(own.values()):.2f}"


def cells_of(page: str, title: str) -> dict[str, list[list[str]]]:
    """{name in the first cell: the numbers of each other cell} of the table under a title."""
    lines = (ROOT / "docs" / page).read_text().replace("−", "-").partition(title)[2].splitlines()
    found = {}
    for line in itertools.takewhile(lambda own: own.startswith("|"), lines[2:]):
        name, *cells = line.strip("|").split("|")
        found[name.strip(" `")] = [re.findall(r"-?[0-9]+\.[0-9]+", cell) for cell in cells]
    assert len(found) > 1
    return found


def pair_of(errors: Errors, name: str, schedule: str, density: float) -> list[str]:
    """Means of a recipe as it is and with `+ls`; none where it was not run."""
    name = name.removesuffix("` in one shot")
    names = (name, f"{name}+ls")
    if name.startswith("obs-global"):
        names = ("obs-global without ls", "obs-global")
    kinds = [(own, schedule, density) for own in names]
    return [mean(errors[kind]) for kind in kinds if kind in errors]


def differs(gap: dict) -> list[str]:
    return [f"{gap[key]:.2f}" for key in ("mean", "low", "high")]


TABLES = [
    ("| single weights |", "none", (0.2, 0.1, 0.05), ["digits_cnn_edges"]),
    ("| channels |", "none", (0.5, 0.25), ["digits_cnn_nodes"]),
    ("| single weights, five rounds |", ROUNDS, (0.2, 0.1, 0.05), ["digits_cnn_edges_rounds"]),
    ("| channels, five rounds |", ROUNDS, (0.5, 0.25), ["digits_cnn_nodes_rounds"]),
    ("| LeNet-300-100, one shot |", "none", (0.2, 0.1, 0.05),
     ["mnist_lenet300_edges", "mnist_lenet300_obs"]),
    ("| LeNet-300-100, five rounds |", ROUNDS, (0.2, 0.1, 0.05),
     ["mnist_lenet300_edges", "mnist_lenet300_edges_rounds", "mnist_lenet300_obs_rounds"]),
]  # fmt: skip


@pytest.mark.parametrize(("title", "schedule", "densities", "folders"), TABLES)
def test_tables_without_training_are_what_was_recorded(title, schedule, densities, folders):
    errors = errors_of(*folders)
    for name, cells in cells_of("second_order.md", title).items():
        assert cells == [pair_of(errors, name, schedule, d) for d in densities], name
        assert any(cells)


def moved_by_rounds(once: Errors, rounds: Errors, rules, densities) -> dict:
    """Five rounds minus one shot, paired by network."""
    return {
        (rule, d): paired(rounds[rule, ROUNDS, d], once[rule, "none", d])
        for rule in rules
        for d in densities
    }


def told_apart(gaps: dict) -> set:
    adjusted = holm([gap["p"] for gap in gaps.values()])
    return {kind for kind, p in zip(gaps, adjusted, strict=True) if p <= 0.05}


def test_what_is_said_of_weights_in_rounds_on_the_digits_cnn_is_what_was_recorded():
    once, rounds = errors_of("digits_cnn_edges"), errors_of("digits_cnn_edges_rounds")
    densities = (0.2, 0.1, 0.05)
    table = cells_of("second_order.md", "| digits CNN, five rounds minus one shot |")
    refitted = {rule for rule, _, _ in rounds if rule.endswith("+ls") or rule == "obs-global"}
    assert set(table) == refitted
    gaps = moved_by_rounds(once, rounds, table, densities)
    for rule, cells in table.items():
        assert cells == [differs(gaps[rule, d]) for d in densities]
    late = {(rule, 0.05) for rule in ("gap-gradient+ls", "wanda+ls", "obd+ls")}
    assert told_apart(gaps) == late | {("gap-gradient+ls", 0.1), ("wanda+ls", 0.1)}
    for d in (0.1, 0.05):
        best = statistics.mean(once["obs-global", "none", d].values())
        others = [rounds[rule, ROUNDS, d] for rule in refitted - {"obs-global"}]
        assert all(best < statistics.mean(own.values()) for own in others)
    rule = "gap-gradient+ls"
    a, b = mean(once[rule, "none", 0.1]), mean(rounds[rule, ROUNDS, 0.1])
    assert f"{rule} from {a} to {b} % at 10 %" in " ".join(ADVICE)


def test_what_is_said_of_channels_in_rounds_on_the_digits_cnn_is_what_was_recorded():
    once, rounds = errors_of("digits_cnn_nodes"), errors_of("digits_cnn_nodes_rounds")
    names = list(cells_of("second_order.md", "| channels, five rounds |"))
    assert {f"{name}+ls" for name in names} <= {rule for rule, _, _ in rounds}
    same = ("random-node", "bn-scale")
    for name in same:
        for d in (0.5, 0.25):
            assert rounds[f"{name}+ls", ROUNDS, d] == once[f"{name}+ls", "none", d]
    rules = [f"{name}{ls}" for name in names for ls in ("", "+ls") if name not in same]
    gaps = moved_by_rounds(once, rounds, rules, (0.5, 0.25))
    assert len(gaps) == 64
    assert not told_apart(gaps)
    page = " ".join((ROOT / "docs" / "second_order.md").read_text().split()).replace("−", "-")
    (least, at), gap = min(gaps.items(), key=lambda own: own[1]["p"])
    mine, low, high = differs(gap)
    assert at == 0.25
    assert f"`{least}` at a quarter, {mine} points ({low} to {high})" in page
    for name in ("taylor", "taylor-2017", "gate"):
        assert all(gaps[name, d]["mean"] < 0 for d in (0.5, 0.25))
    for name in names:
        if name == "thinet" or name.startswith(("greedy", "forward")):
            assert gaps[name, 0.25]["mean"] > 0
    refitted = [gap["mean"] for (rule, _), gap in gaps.items() if rule.endswith("+ls")]
    assert f"the largest change is {max(refitted, key=abs):.2f} points" in page


def test_what_is_said_of_lenets_nodes_is_what_was_recorded():
    once, rounds = errors_of("mnist_lenet300_nodes"), errors_of("mnist_lenet300_nodes_rounds")
    table = cells_of("second_order.md", "| LeNet-300-100, nodes |")
    names = list(table)
    random = "random-node"
    gaps = {
        (name, density): paired(
            once[f"{name}+ls", "none", density], once[f"{random}+ls", "none", density]
        )
        for density in (0.5, 0.25)
        for name in names
        if name != random
    }
    for name, cells in table.items():
        expected = []
        for density in (0.5, 0.25):
            expected.append(pair_of(once, name, "none", density))
            expected.append([] if name == random else differs(gaps[name, density]))
            expected.append(pair_of(rounds, name, ROUNDS, density))
        assert cells == expected, name
    adjusted = dict(zip(gaps, holm([gap["p"] for gap in gaps.values()]), strict=True))
    told = {kind for kind, p in adjusted.items() if p <= 0.05}
    assert set(gaps) - told == {("mean-activation", 0.25)}  # as the page says
    page = " ".join((ROOT / "docs" / "second_order.md").read_text().split()).replace("−", "-")
    moved = [
        (kind, paired(rounds[kind[0], ROUNDS, kind[1]], once[kind[0], "none", kind[1]]))
        for kind in ((f"{n}{ls}", d) for d in (0.5, 0.25) for n in names for ls in ("", "+ls"))
        if not kind[0].startswith(random)
    ]
    assert len(moved) == 40
    assert min(holm([gap["p"] for _, gap in moved])) > 0.05
    (least, at), gap = min(moved, key=lambda own: own[1]["p"])
    mine, low, high = differs(gap)
    assert at == 0.25
    assert f"`{least}` at a quarter, {mine} points ({low} to {high}) before correction" in page
    assert {k for k in told if gaps[k]["mean"] > 0} == {
        ("mean-activation", 0.5), ("apoz", 0.5), ("apoz", 0.25),
    }  # fmt: skip


def test_what_is_said_of_lenet_is_what_was_recorded():
    """Differences in the text with their intervals; the advice quotes the tables."""
    edges = errors_of(
        "mnist_lenet300_edges", "mnist_lenet300_edges_rounds",
        "mnist_lenet300_obs", "mnist_lenet300_obs_rounds",
    )  # fmt: skip
    nodes = errors_of("mnist_lenet300_nodes")
    said = " ".join(ADVICE)
    for own in (
        edges["obs-global", "none", 0.1], edges["obs-global", "none", 0.05],
        edges["obs", "none", 0.1],
        edges["magnitude-global+ls", "none", 0.1], edges["gap-gradient+ls", ROUNDS, 0.1],
        edges["obd+ls", ROUNDS, 0.1],
        edges["gap-gradient+ls", ROUNDS, 0.05], edges["magnitude-global+ls", "none", 0.05],
        edges["magnitude-global+ls", ROUNDS, 0.05],
        *(nodes[f"{n}+ls", "none", d] for n in ("obs-node", "random-node", "apoz")
          for d in (0.5, 0.25)),
    ):  # fmt: skip
        assert mean(own) in said[said.index("on LeNet-300-100 (dense") :]
    page = " ".join((ROOT / "docs" / "second_order.md").read_text().split())
    page = page[page.index("## What LeNet-300-100 shows") :].replace("−", "-")
    best = "magnitude-global+ls"
    lines = (RESULTS / "mnist_lenet300_obs" / "records.jsonl").read_text().splitlines()
    dense = {row["seed"]: 100 * row["before"]["test_error"] for row in map(json.loads, lines)}
    late = ("gap-gradient+ls", ROUNDS, 0.05)
    for other, d, words in (
        (dense, 0.1, "to {} points above the dense one ({} to {})"),
        (edges[best, "none", 0.1], 0.1, "{} points ({} to {}) below the next best, global"),
        (edges[late], 0.05, "{} points ({} to {}) below the next best, `gap-gradient+ls` in five"),
    ):
        ours = edges["obs-global", "none", d]
        gap = paired(ours, other) if other is dense else paired(other, ours)
        assert words.format(*differs(gap)) in page
    for d in (0.2, 0.1, 0.05):
        ours = statistics.mean(edges["obs-global", "none", d].values())
        others = [
            own for kind, own in edges.items() if kind[2] == d and "obs-global" not in kind[0]
        ]
        assert all(ours < statistics.mean(own.values()) for own in others)
    gaps = {
        (other, d): paired(edges[other, "none", d], edges[best, "none", d])
        for d in (0.2, 0.1, 0.05)
        for other in ("magnitude+ls", "wanda+ls", "gap-gradient+ls", "obd+ls")
    }
    assert max(holm([gap["p"] for gap in gaps.values()])) <= 0.05
    assert all(gap["mean"] > 0 for gap in gaps.values())
    for d in (0.2, 0.1, 0.05):
        mine, low, high = differs(gaps["obd+ls", d])
        assert re.search(rf"{mine}( points)? at a \w+ \({low} to {high}\)", page)
    assert "all twelve differences to the other four rules" in page
    table = cells_of("second_order.md", "| five rounds minus one shot | density")
    densities = (0.2, 0.1, 0.05)
    moved = moved_by_rounds(edges, edges, table, densities)
    in_rounds = errors_of("mnist_lenet300_edges_rounds")
    assert set(table) == {rule for rule, _, _ in in_rounds if rule.endswith("+ls")} | {"obs-global"}
    for rule, cells in table.items():
        assert cells == [differs(moved[rule, d]) for d in densities]
    alike = {(rule, 0.2) for rule in ("magnitude+ls", "gap-gradient+ls", "obd+ls")}
    alike |= {("obs-global", d) for d in densities}
    assert set(moved) - told_apart(moved) == alike
    rounds = edges["gap-gradient+ls", ROUNDS, 0.05]
    mine, low, high = differs(paired(edges[best, "none", 0.05], rounds))
    assert f"by {mine} points ({low} to {high}) before global magnitudes at once" in page
    assert paired(edges["obd+ls", ROUNDS, 0.05], rounds)["low"] > 0
    near = differs(paired(edges["gap-gradient+ls", ROUNDS, 0.1], edges[best, "none", 0.1]))
    assert "still better by {} points ({} to {}).".format(*near) in page


def test_what_is_said_of_methods_inside_training_is_what_was_recorded():
    """The advice, and the page's means and differences with their intervals."""
    lines = (RESULTS / "mnist_lenet300_training" / "records.jsonl").read_text().splitlines()
    errors: dict[str, dict[int, float]] = {}
    for row in map(json.loads, lines):
        if row["recipe"] == "random-edge":  # the lottery's
            continue
        errors.setdefault(row["recipe"], {})[row["seed"]] = 100 * row["retrained"]["test_error"]
    means = {name: statistics.mean(own.values()) for name, own in errors.items()}
    assert {len(own) for own in errors.values()} == {5}
    said = " ".join(ADVICE)
    order = ("gradual", "lottery", "rigl", "set", "gradual-layer", "static")
    assert re.findall(r"[0-9.]+", said[said.index("errs by") :])[:7] == [
        f"{means['gradual']:.2f}",
        "1.56",
        *(f"{means[name]:.2f}" for name in order[1:]),
    ]
    page = (ROOT / "docs" / "prune_while_you_train.md").read_text().replace("−", "-")
    for name in order[:-1]:
        gap = paired(errors[name], errors["static"])
        [line] = re.findall(rf"^\| {name}[,a-z ]* \| [0-9.]+ \| -.*\|$", page, re.MULTILINE)[:1]
        assert re.findall(r"-?[0-9.]+", line) == [
            f"{value:.2f}" for value in (means[name], gap["mean"], gap["low"], gap["high"])
        ]


def test_what_is_said_of_methods_on_the_digits_is_what_was_recorded():
    lines = (RESULTS / "inside_training.jsonl").read_text().splitlines()
    errors: dict[tuple[str, float], dict[int, float]] = {}
    for row in map(json.loads, lines):
        own = errors.setdefault((row["method"], row["density"]), {})
        assert row["seed"] not in own
        own[row["seed"]] = 100 * row["test_error"]
    assert {len(own) for own in errors.values()} == {5}
    table = table_of("prune_while_you_train.md", "one of them is 0.22 points):\n\n")
    assert set(table) == {method for method, _ in errors}
    for method, said in table.items():
        found = []
        for density in (0.2, 0.1, 0.05):
            own = errors[method, 0.2 if method == "dense" else density]
            found += [statistics.mean(own.values()), min(own.values()), max(own.values())]
        assert said == [f"{value:.2f}" for value in found]
    page = (ROOT / "docs" / "prune_while_you_train.md").read_text()
    for one, other in (
        ("rigl", "static random"), ("gradual", "static random"), ("set", "static random"),
        ("gradual", "static in gradual's layers"), ("gradual", "one shot at half time"),
        ("static random", "gradual-layer"),
    ):  # fmt: skip
        gap = paired(errors[other, 0.05], errors[one, 0.05])
        assert f"{gap['mean']:.2f} ({gap['low']:.2f} to {gap['high']:.2f})" in page
    best = ("rigl", "gradual", "set")
    a, b, c = (f"{name} ({table[name][6]})" for name in best)
    assert f"(dense {table['dense'][0]}) at 5 % {a}, {b} and {c} are not" in " ".join(ADVICE)
    assert f"random masks err by {table['static random'][6]}." in " ".join(ADVICE)
    for one, other in itertools.combinations(best, 2):
        gap = paired(errors[other, 0.05], errors[one, 0.05])
        assert gap["low"] < 0 < gap["high"]
    for method in set(table) - {"static random"}:
        gap = paired(errors[method, 0.2], errors["static random", 0.2])
        assert (gap["low"] > 0) == (method == "soft (global)")
        assert gap["high"] > 0


def test_what_is_said_of_distillation_is_what_was_recorded():
    lines = (RESULTS / "digits_distil" / "records.jsonl").read_text().splitlines()
    scores: dict[tuple[str, bool], dict[int, dict[str, float]]] = {}
    for row in map(json.loads, lines):
        kind = (row["task"], bool(row["extra"]["settings"].get("distil")))
        scores.setdefault(kind, {})[row["seed"]] = row["after"]
    assert {len(own) for own in scores.values()} == {5}
    page = " ".join((ROOT / "docs" / "prune_while_you_train.md").read_text().split())

    def of(task: str, distilled: bool, key: str) -> dict[int, float]:
        by = 100 if key == "test_error" else 1
        return {seed: by * own[key] for seed, own in scores[task, distilled].items()}

    for task, words in (
        ("digits-mlp", "MLP errs by {} % with it and {} without, {} points more ({} to {})"),
        ("digits-cnn", "CNN by {} and {}, {} points more ({} to {}), not told apart"),
    ):
        having, lacking = (of(task, d, "test_error") for d in (True, False))
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        numbers = [*means, gap["mean"], gap["low"], gap["high"]]
        assert words.format(*(f"{value:.2f}" for value in numbers)) in page
        having, lacking = (of(task, d, "cross_entropy") for d in (True, False))
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        assert "{:.3f} from {:.3f}".format(*means) in page
        assert gap["low"] < 0 < gap["high"]


def test_what_is_said_of_distillation_on_mnist_is_what_was_recorded():
    rows = {}
    for folder in ("mnist_lenet300_distil", "mnist_lenet300_training"):
        lines = map(json.loads, (RESULTS / folder / "records.jsonl").read_text().splitlines())
        own = [row for row in lines if row["recipe"] == "gradual"]
        rows[folder] = {row["seed"]: row for row in own}
        assert len(own) == len(rows[folder]) == 5
    distilled, plain = rows.values()
    for seed, row in distilled.items():  # all else alike
        settings, other = row["extra"]["settings"], plain[seed]["extra"]["settings"]
        assert settings == {**other, "distil": [4.0, 0.9]}
        assert (row["schedule"], row["budget"]) == (plain[seed]["schedule"], plain[seed]["budget"])
    page = " ".join((ROOT / "docs" / "prune_while_you_train.md").read_text().split())
    for key, by, words in (
        ("test_error", 100, "errs by {:.2f} % with it and {:.2f} without, {:.2f} points more "
         "({:.2f} to {:.2f})"),
        ("cross_entropy", 1, "cross-entropy rises, {:.3f} from {:.3f}"),
    ):  # fmt: skip
        having, lacking = (
            {seed: by * row["retrained"][key] for seed, row in own.items()}
            for own in (distilled, plain)
        )
        gap = paired(having, lacking)
        means = (statistics.mean(own.values()) for own in (having, lacking))
        assert words.format(*means, gap["mean"], gap["low"], gap["high"]) in page
        assert gap["low"] > 0


def test_what_scores_of_the_loss_cost_is_what_was_measured():
    rows = {r["what"]: r for r in json.loads((RESULTS / "second_order.json").read_text())["rows"]}
    page = " ".join((ROOT / "docs" / "second_order.md").read_text().split())
    ratios = [row["ratio"] for row in rows.values() if "ratio" in row]
    for ratio, words in zip(
        ratios,
        ("takes {:.2f} of the time of", "rounds {:.1f} calibrations", "weights {:.2f} of `obs`"),
        strict=True,
    ):
        assert words.format(ratio) in page
    (spent,) = (row["s"] for row in rows.values() if "ratio" not in row)
    assert f"from 1200 samples on, {spent:.1f} s." in page
