"""Pages, charts, drawings: what they hold, and how they behave in a real browser."""

import base64
import csv
import io
import json
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from itertools import combinations, product

import pytest
import torch

from prunus.report import charts, curves, network
from prunus.report.figure import KINDS, PALETTE, figure, save_figure
from prunus.report.layers import layer_charts
from prunus.report.page import Chart, Drawing, Section, Table, Text, page, table_csv
from prunus.rng import generator_for

METHODS = ("magnitude", "dpp-edge")
STYLES = ("without least squares", "with least squares")
DENSITIES = (0.5, 0.2, 0.05)


def records() -> list[dict]:
    """Errors that fall with density, with a spread over three seeds that is known."""
    return [
        {
            "method": m,
            "compensation": s,
            "density": d,
            "seed": seed,
            "error": (2 + METHODS.index(m)) / d / (1 + STYLES.index(s)) * (1 + 0.1 * seed),
        }
        for m, s, d, seed in product(METHODS, STYLES, DENSITIES, range(3))
    ]


def example_page() -> str:
    rows = charts.summarise(records(), ["method", "compensation", "density"], "error")
    drawn = curves.curves(
        rows, x="density", x_title="density", y_title="test error (%)", baseline=1.0
    )
    layers = [
        {"method": m, "layer": n, "density": d, "layer_density": d}
        for m, n, d in product(METHODS, ("fc1", "fc2"), DENSITIES)
    ]
    speed = [{"method": m, "density": 0.2, "value": 2.0, "low": 1.5, "high": 2.5} for m in METHODS]
    weights = [torch.randn(4, 6, generator=generator_for(0)), torch.ones(3, 4)]
    return page(
        "A <test> page",
        [
            Section("Curves", [Text("Some **bold** & `code`."), Chart("curves", drawn, rows)]),
            Section(
                "Pictures",
                [
                    [
                        Chart("layers", charts.layer_map(layers), layers),
                        Chart("speed", charts.intervals(speed, x_title="speed-up (×)"), speed),
                    ],
                    Drawing(network.draw_network(weights), "A net.", "Net"),
                    Table("table", [{"a": 1, "b": "x<y"}, {"a": None, "c": 0.123456}]),
                ],
            ),
        ],
        lead="Read this first.",
        footer="torch",
    )


def test_summary_by_hand():
    rows = charts.summarise(records(), ["method", "compensation", "density"], "error")
    assert len(rows) == 12
    first = rows[0]
    assert first["mean"] == pytest.approx(2 / 0.5 * 1.1)
    assert (first["low"], first["high"], first["seeds"]) == (4.0, pytest.approx(4.8), 3)
    assert charts.summarise([{"a": 1, "v": None}, {"a": 1, "v": 2.0}], ["a"], "v") == [
        {"a": 1, "mean": 2.0, "low": 2.0, "high": 2.0, "seeds": 1}
    ]


def test_equal_arguments_give_equal_bytes():
    assert example_page() == example_page()


def test_page_refers_to_nothing_outside():
    text = example_page()
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    specs = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.S)[1])
    assert "http" not in json.dumps(specs)
    assert "default-src 'none'" in text
    assert text.count("window.vegaEmbed=") == 1
    assert "window.vegaEmbed=" not in page("no charts", [Section("a", [Text("b")])])


def test_csv_link_holds_the_numbers():
    link = re.search(r'download="table.csv" href="data:text/csv;[^,]*,([^"]*)"', example_page())
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link[1]).decode())))
    assert rows == [{"a": "1", "b": "x<y", "c": ""}, {"a": "", "b": "", "c": "0.123456"}]
    assert table_csv([{"x": 1 / 3}]) == "x\n0.3333333333333333\n"


def test_text_is_text():
    text = page(
        "t", [Section("<b>", [Text("<script>alert(1)</script>"), Table("n", [{"<i>": 1}])])]
    )
    assert "<script>alert" not in text
    assert "&lt;b&gt;" in text
    assert "&lt;i&gt;" in text


def test_charts_refuse_what_they_cannot_draw():
    with pytest.raises(ValueError, match="`rows` must hold at least one row"):
        curves.curves([], x="density", x_title="", y_title="")
    rows = [{"method": "a", "density": 0.1, "compensation": s, "low": 1} for s in "abc"]
    with pytest.raises(
        ValueError, match=r"`compensation` must take at most two values, .* got a, b, c"
    ):
        curves.curves(rows, x="density", x_title="", y_title="")
    twice = [Table("same", [{"a": 1}]), Table("same", [{"a": 1}])]
    with pytest.raises(ValueError, match="Names on a page must differ, got same more than once"):
        page("t", [Section("s", twice)])


def test_zero_error_is_drawn_on_a_linear_scale():
    rows = [
        {"method": "a", "density": d, "compensation": "none", "mean": e, "low": e, "high": e,
         "seeds": 1}
        for d, e in ((0.1, 0.5), (0.5, 0.0))
    ]  # fmt: skip
    spec = curves.curves(rows, x="density", x_title="density", y_title="error")
    scales = {layer["encoding"]["y"]["scale"].get("type", "linear") for layer in spec["layer"]}
    assert scales == {"linear"}


@pytest.mark.parametrize("style", STYLES)
def test_a_style_looks_the_same_whatever_stands_beside_it(style):
    def look(rows):
        spec = curves.curves(rows, x="density", x_title="", y_title="", styles=STYLES)
        lines = next(v for v in spec["layer"] if v["mark"]["type"] == "line")
        points = {
            v["transform"][-1]["filter"]: v["mark"]["filled"]
            for v in spec["layer"]
            if v["mark"]["type"] == "point"
        }
        return lines["encoding"]["strokeDash"]["scale"], points

    rows = charts.summarise(records(), ["method", "compensation", "density"], "error")
    assert look([r for r in rows if r["compensation"] == style]) == look(rows)
    assert look(rows) == look(rows[::-1])
    assert look(rows)[1] == {f"datum['compensation'] == '{s}'": s == STYLES[1] for s in STYLES}


SVG = "{http://www.w3.org/2000/svg}"


def test_network_draws_kept_synapses_and_living_neurons():
    weights = [torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]]), torch.ones(2, 3)]
    masks = [
        torch.tensor([[True, True], [False, False], [False, True]]),
        torch.tensor([[True, True, False], [False, True, False]]),
    ]
    picture = ElementTree.fromstring(
        network.draw_network(weights, masks, names=["fc<1>", "fc2"]).replace(
            "<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1
        )
    )
    lines = picture.findall(f"{SVG}line")
    assert [line.get("class") for line in lines] == [
        "plus",
        "minus",
        "plus",
        "plus",
        "plus",
        "plus",
    ]
    circles = [c.get("class") for c in picture.findall(f"{SVG}circle")]
    # Unit 2 has no inputs, unit 3 no outputs; both output units are reached.
    assert circles == ["unit", "unit", "unit", "empty", "empty", "unit", "unit"]
    assert "fc<1>" in [text.text for text in picture.findall(f"{SVG}text")]
    dense = network.draw_network(weights)
    assert dense.count("<line") == 12
    assert 'class="empty"' not in dense


def test_network_refuses_what_is_no_chain():
    with pytest.raises(
        ValueError, match=r"Only a chain of layers .* got shapes \(3, 2\), \(2, 4\)"
    ):
        network.draw_network([torch.ones(3, 2), torch.ones(2, 4)])
    with pytest.raises(ValueError, match="at most 2500 weights"):
        network.draw_network([torch.ones(100, 100)])
    with pytest.raises(ValueError, match="got shapes none"):
        network.draw_network([])


def opacities(svg: str) -> list[list[int]]:
    """The alpha channel of the one picture in a drawing, decoded from the PNG format by hand."""
    data = base64.b64decode(re.search(r"base64,([^\"]+)", svg)[1])
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        chunks[kind] = body
        place += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    raw = zlib.decompress(chunks[b"IDAT"])
    line = 1 + 4 * width
    return [list(raw[i * line + 4 : (i + 1) * line : 4]) for i in range(height)]


def test_mask_is_drawn_weight_by_weight_or_block_by_block():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert opacities(network.draw_mask(mask)) == [[255, 0, 255], [0, 0, 255]]
    big = torch.zeros(40, 80, dtype=torch.bool)
    big[:, :20] = True
    big[20:, 20:40] = True
    big[20:, 20:40:2] = False
    shares = opacities(network.draw_mask(big, cells=4))
    assert shares == [[255, 0, 0, 0], [255, 128, 0, 0]]


def shown(tab, folder):
    path = folder / "page.html"
    path.write_text(example_page())
    tab.open(path.as_uri(), "document.body.dataset.drawn == '3'")
    return tab


@pytest.fixture
def opened(tab, tmp_path):
    tab.look(1280)
    return shown(tab, tmp_path)


def test_page_opens_without_complaint_or_request(opened):
    assert opened.complaints() == []
    assert opened.requests() == []
    assert opened.run("document.querySelectorAll('.plot svg.marks').length") == 3
    assert (
        opened.run("document.querySelectorAll('#chart-curves .mark-symbol path').length") >= 6 + 2
    )


@pytest.mark.parametrize("width", [320, 400, 768, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_every_width(tab, tmp_path, width, dark):
    tab.look(width, dark=dark)
    opened = shown(tab, tmp_path)
    assert opened.run("document.documentElement.scrollWidth") <= width
    plot = opened.run("document.querySelector('#chart-curves svg').getBoundingClientRect().width")
    assert 0.6 * min(width, 560) < plot + 60 <= width
    ink = opened.run("getComputedStyle(document.body).color")
    paper = opened.run("getComputedStyle(document.body).backgroundColor")
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (light[0] > light[1]) == dark
    assert abs(light[0] - light[1]) > 400


def test_buttons_choose_what_is_shown(opened):
    def lines() -> int:
        return opened.run("document.querySelectorAll('#chart-curves .mark-line path').length")

    assert lines() == 2  # with least squares, until something else is asked for
    opened.run(
        "[...document.querySelectorAll('#chart-curves input[type=radio]')]"
        ".find(b => b.value == 'both').click()"
    )
    opened.wait("document.querySelectorAll('#chart-curves .mark-line path').length == 4")


def test_csv_downloads(opened):
    opened.run("document.querySelector('a[download=\"curves.csv\"]').click()")
    target = opened.downloads / "curves.csv"
    for _ in range(200):
        if target.exists() and target.stat().st_size:
            break
        opened.run("new Promise(done => setTimeout(done, 50))")
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert len(rows) == 12
    assert {row["method"] for row in rows} == set(METHODS)


def test_dark_page_has_lighter_lines(opened):
    lines = "[...document.querySelectorAll('#chart-curves .mark-line path')]"
    colours = f"{lines}.map(p => p.getAttribute('stroke'))"
    assert PALETTE[0] in opened.run(colours)
    opened.look(1280, dark=True)
    opened.wait(f"{colours}.includes('#4A86E8')")
    assert PALETTE[0] not in opened.run(colours)


def hostile_page():
    """What data can hold: comments, tags, formulas, and numbers that are none."""
    rows = [
        {"method": "<!--<script>", "density": 0.1, "compensation": "none", "mean": math.nan,
         "low": 0.1, "high": math.inf, "seeds": 1},
        {"method": "=HYPERLINK(1)", "density": 0.5, "compensation": "none", "mean": 0.2,
         "low": 0.1, "high": 0.3, "seeds": 1},
    ]  # fmt: skip
    chart = curves.curves(rows, x="density", x_title="kept", y_title="error")
    return page("</script><!--", [Section("s", [Chart("c", chart, rows), Table("t", rows)])])


def test_numbers_that_are_none_are_null_in_charts_and_words_in_tables():
    text = hostile_page()
    specs = re.search(r'id="charts">(.*?)</script>', text, re.S)[1]
    assert json.loads(specs, parse_constant=pytest.fail)["c"]
    assert "null" in specs
    assert '<td class="n">NaN</td>' in text
    assert '<td class="n">∞</td>' in text


def test_no_character_of_data_begins_a_tag():
    text = hostile_page()
    specs = re.search(r'id="charts">(.*?)</script>', text, re.S)[1]
    assert "<" not in specs
    assert "\\u003c!--\\u003cscript>" in specs
    assert "<!--<script>" not in text
    assert "<title>&lt;/script&gt;&lt;!--</title>" in text
    assert "base-uri 'none'; form-action 'none'" in text


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "=cmd|' /C calc'!A0"]
)
def test_no_text_of_a_csv_file_is_a_formula(cell):
    rows = list(csv.reader(io.StringIO(table_csv([{cell: cell, "n": -1.5}]), newline="")))
    text = f"'{cell}".replace("\r", "\n")
    assert rows == [[text, "n"], [text, "-1.5"]]


def test_figures_of_numbers_that_are_none_are_written(tmp_path):
    rows = [
        {"x": 1.0, "y": math.nan, "series": "=a", "kind": "measured"},
        {"x": 2.0, "y": 1.0, "series": "=a", "kind": "measured"},
    ]
    paths = save_figure(figure(rows, x="x", y="y", x_title="x", y_title="y"), tmp_path / "f", rows)
    assert json.loads(paths[3].read_text(), parse_constant=pytest.fail)[0]["y"] is None
    assert "'=a" in paths[2].read_text()


@pytest.mark.parametrize("facet", [None, "panel"])
@pytest.mark.parametrize("kinds", [c for n in (1, 2, 3) for c in combinations(KINDS, n)])
def test_no_layer_of_a_figure_is_without_records(kinds, facet):
    """Vega warns of the infinite extent of one that is."""
    rows = [
        {"x": x, "y": x, "series": kind, "kind": kind, "panel": kind}
        for kind in kinds
        for x in (1.0, 2.0)
    ]
    spec = figure(rows, x="x", y="y", x_title="x", y_title="y", facet=facet).to_dict()
    layers = (spec["spec"] if facet else spec)["layer"]
    shown = [layer["transform"][0]["filter"] for layer in layers]
    assert shown == [f"(datum.kind === '{kind}')" for kind in KINDS if kind in kinds]


def test_names_beside_bars_are_cut_where_they_are_alike():
    rows = [{"layer": f"model.layers.{i}.attention.self.{k}_projection", "density": 0.5,
             "error": None, "relative": None} for i in range(2) for k in "qk"]  # fmt: skip
    [chart] = layer_charts(rows)
    names = [r["layer"] for r in next(iter(chart.chart["data"].values()))]
    assert names == [f"…tention.self.{k}_projection" for k in "qk"] * 2 or len({*names}) == 4
    assert [r["layer"] for r in chart.rows] == [r["layer"] for r in rows]
    few = [{**rows[0], "layer": n} for n in ("model.fc1", "model.fc2")]
    [chart] = layer_charts(few)
    assert [r["layer"] for r in chart.chart["data"]["values"]] == ["fc1", "fc2"]
