"""Every kind of page in a real browser: quiet, as wide as the window, readable in the dark."""

import re
import warnings
from itertools import pairwise

import pytest
import torch

import models
import prunus
from prunus.bench.record import Record, content_id
from prunus.bench.statistics.tables import tables
from prunus.folder import FolderResult, LayerAccount
from prunus.folder.needs import Needs
from prunus.likelihood import Perplexity
from prunus.report.at_init import at_init_page
from prunus.report.certificate import certificate_page
from prunus.report.grid import grid_page
from prunus.report.pruning import pruning_page
from prunus.theory import at_init
from prunus.tokens import TokenSet

KINDS = ("pruning", "compare", "bench", "certificate", "at-init", "sensitivity", "folder")
COMPARED = (
    "magnitude", "magnitude-row", "wanda", "random-edge", "magnitude-global", "magnitude-lamp",
    "magnitude-erk", "sparsegpt", "importance-node",
)  # fmt: skip
MADE = "2026-01-02"
DRAWN = "document.body && Number(document.body.dataset.drawn) > 0"
# Text whose colour against what lies behind it is below 4.5 (WCAG 2, AA), with its contrast.
FAINT = """(() => {
  const parse = c => { const m = (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return m.length > 3 ? m : [...m, 1]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = (el, box) => {
    const svg = el.closest("svg.marks");
    if (svg && el.closest(".mark-text")) {
      const x = box.left + box.width / 2, y = box.top + box.height / 2;
      const under = [...svg.querySelectorAll(".mark-rect path")].filter(p => {
        const b = p.getBoundingClientRect();
        return b.left <= x && x <= b.right && b.top <= y && y <= b.bottom && b.width > 2; });
      if (under.length) return parse(getComputedStyle(under.at(-1)).fill);
    }
    for (let e = el; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] > .99) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const el = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || el.closest("script, style, option, select, button, .vega-embed details"))
      continue;
    const range = document.createRange(); range.selectNodeContents(walk.currentNode);
    const box = range.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const style = getComputedStyle(el);
    const ink = parse(el instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(el, box))].sort((p, q) => q - p);
    const contrast = (a + .05) / (b + .05);
    if (contrast < 4.5) found.push(text.slice(0, 30) + " " + contrast.toFixed(2));
  }
  return found;
})()"""
WIDE = (
    "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth + 1)"
    ".map(b => b.closest('figure').querySelector('.csv').textContent)"
)


def measured_records() -> list[Record]:
    """Recipes more than colours can tell apart, beside a random mask and a small network."""
    rows = []
    for density in (0.5, 0.2, 0.05):
        for seed in range(3):
            null = None
            for i in range(11):
                recipe = "random-edge" if i == 0 else f"recipe-with-a-name-{i}"
                given = {
                    "id": content_id(recipe=recipe, density=density, seed=seed),
                    "task": "digits", "recipe": recipe, "recipe_repr": recipe,
                    "recipe_hash": recipe, "seed": seed, "density_asked": density,
                    "density": density, "schedule": "none", "budget": f"Budget(density={density})",
                    "after": {"test_error": 0.02 / density * (1 + i % 7) / 8 + 1e-4 * seed},
                    "before": {"test_error": 0.01}, "parameters": (100000, round(1e5 * density)),
                    "macs": (900, round(900 * density)), "bytes": (4000, round(3000 * density)),
                    "versions": {"prunus": "0"}, "seconds": 1.0,
                    "extra": {"baselines": {} if null is None else {"random": null}},
                }  # fmt: skip
                rows.append(Record(**given))
                null = null or rows[-1].id
    return rows


def pruned_folder(folder):
    """The account of a checkpoint of twelve blocks, its names as long as they come."""
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    names = [f"model.language_model.layers.{i}.{kind}" for i in range(12) for kind in kinds]
    return FolderResult(
        folder=folder / "pruned-checkpoint",
        recipe=repr(prunus.recipes["sparsegpt"]),
        name="sparsegpt",
        seed=0,
        layers={n: LayerAccount(kept=500 + i, total=1000, error=1e-3 * (1 + i % 5), power=0.02)
                for i, n in enumerate(names)},
        not_pruned={"lm_head": "the head stays whole"},
        tokens=4096,
        seen=TokenSet.from_list([]),
        needs=Needs(memory={"a block": 10_000_000}, disk=1_000_000, seconds=12.0),
        seconds=12.0,
    )  # fmt: skip


def perplexities():
    """Of the dense network and of the pruned one."""
    return {
        stage: Perplexity(value=value, interval=(value - 1, value + 1), tokens=9116, nats=25e3,
                          window=512, stride=512,
                          window_nats=torch.ones(18, dtype=torch.float64),
                          window_tokens=torch.ones(18, dtype=torch.int64))
        for stage, value in (("dense", 14.86), ("pruned", 15.77))
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a small trained network, with names and numbers as long as they come."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    model, x = models.MLP((20, 24, 16, 4)).eval(), torch.randn(400, 20)
    with torch.no_grad():
        truth = model(x).argmax(1)

    def evaluate(network):
        return {"accuracy": (network(x[200:]).argmax(1) == truth[200:]).double().mean()}

    names = [f"{name}{ls}" for name in COMPARED for ls in ("", "+ls")]
    compared = prunus.compare(
        model, names, [0.5, 0.2, 0.1], data=x[:200], evaluate=evaluate, seeds=3, latency=True,
        progress=False,
    )  # fmt: skip
    pruned = prunus.prune(model, "importance-node+ls", 0.4, data=x[:200], evaluate=evaluate)
    pruned = pruned.measured(x[:64], seconds=0.05)
    scan = prunus.sensitivity(model, "magnitude", [0.5, 0.2], data=x[:200], evaluate=evaluate)
    setting = at_init.Setting(classes=2, samples=20, dimension=64, neurons=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vacuous bounds and few seeds stand on the pages
        certificate = pruned.certify(x[200:])
        rows = at_init.summarise(at_init.simulate(setting, [1, 0.3, 0.05], seeds=2, steps=20))
    texts = {
        "pruning": pruning_page(pruned, certificate, made=MADE),
        "bench": grid_page(tables(measured_records(), "test_error"), title="A benchmark"),
        "certificate": certificate_page(certificate, made=MADE),
        "at-init": at_init_page(setting, rows, seeds=2, made=MADE),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    compared.report(folder / "compare.html", made=MADE)
    scan.report(folder / "sensitivity.html", made=MADE)
    pruned_folder(folder).report(folder / "folder.html", scores=perplexities(), made=MADE)
    return {kind: folder / f"{kind}.html" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_begins_with_its_headline_and_ends_with_its_conditions(kind, pages):
    text = pages[kind].read_text()
    begin = text.index('<div class="headline">')
    assert ("<nav>" in text) == (text.count("<section ") > 1)  # no contents of one section
    order = [begin, *(m.start() for m in re.finditer("<nav>|<main>", text))]
    assert order == sorted(order)
    assert len(order) == 2 + ("<nav>" in text)
    assert begin + 60 < text.index("</div>", begin)
    foot = text[text.index("<footer>") :]
    assert "prunus 0" in foot
    assert (MADE in foot) == (kind != "bench")  # which is made from records alone
    if kind in ("pruning", "compare"):
        assert "200 samples calibrated" in foot


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (400, True)])
def test_a_page_is_quiet_fits_and_can_be_read(kind, width, dark, pages, tab):
    tab.look(width, dark=dark)
    tab.open(pages[kind].as_uri(), DRAWN)
    assert tab.complaints() == []
    assert tab.requests() == []
    assert tab.run(FAINT) == []
    tab.run("document.querySelectorAll('figure > details').forEach(d => d.open = true)")
    assert tab.run("document.documentElement.scrollWidth") <= width
    wide = tab.run(WIDE)
    if width == 1280:
        assert wide == []
    else:
        marked = "[...document.querySelectorAll('.scroll.more')].length"
        tab.wait(f"{marked} == {len(wide)}")


def test_scores_are_seen_first_on_a_narrow_page(pages, tab):
    tab.look(400)
    tab.open(pages["bench"].as_uri(), DRAWN)
    inside = tab.run(
        "(() => { const box = document.querySelector('#scores figure.table .scroll');"
        "const right = box.getBoundingClientRect().right;"
        "return [...box.querySelectorAll('th')].filter(h => h.getBoundingClientRect().right"
        " <= right).map(h => h.textContent); })()"
    )
    assert {"recipe", "mean"} <= set(inside)


def test_the_best_are_in_colour_and_named_apart_at_their_ends(pages, tab):
    tab.look(1280)
    tab.open(pages["compare"].as_uri(), DRAWN)
    names = "[...document.querySelectorAll('#chart-by-parameters .mark-text.role-mark text')]"
    boxes = tab.run(
        f"{names}.filter(t => t.textContent != 'dense')"
        ".map(t => { const b = t.getBoundingClientRect(); return [t.textContent, b.top]; })"
    )
    assert len(boxes) == 5
    tops = sorted(top for _, top in boxes)
    assert min(b - a for a, b in pairwise(tops)) > 10
    lines = "[...document.querySelectorAll('#chart-by-parameters .mark-line path')]"
    colours = tab.run(f"{lines}.map(p => p.getAttribute('stroke'))")
    assert colours.count("#C3C9CF") == 4  # nine methods, five of them in colour


def test_names_on_the_benchmarks_curves_keep_apart(pages, tab):
    """Eleven curves that end close to one another; also where the axis is another place's."""
    tab.look(1280)
    tab.open(pages["bench"].as_uri(), DRAWN)
    names = "[...document.querySelectorAll('#chart-scores .mark-text.role-mark text')]"
    tops = sorted(tab.run(f"{names}.map(t => t.getBoundingClientRect().top)"))
    assert len(tops) == 5
    assert min(b - a for a, b in pairwise(tops)) > 10


def test_the_contrast_check_notices_what_is_faint(tab, tmp_path):
    page = tmp_path / "faint.html"
    page.write_text("<body style='background:#fff'><p style='color:#999'>hardly there</p></body>")
    tab.look(400)
    tab.open(page.as_uri())
    assert tab.run(FAINT) == ["hardly there 2.85"]
