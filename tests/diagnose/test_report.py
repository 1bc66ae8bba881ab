"""The page is read as a browser and a reader would: its structure, its words, its numbers."""

import base64
import csv
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from scipy import stats

import torchmpo.diagnose.report.figures as figures
from torchmpo.diagnose.leaderboard import leaderboard, write_leaderboard
from torchmpo.diagnose.report.contents import Run
from torchmpo.diagnose.report.figures import shorten
from torchmpo.diagnose.report.page import write_page
from torchmpo.diagnose.report.sections import columns as columns_of
from torchmpo.diagnose.report.words import fell, findings, headline, protocol
from torchmpo.diagnose.run import _tell_start
from torchmpo.diagnose.settings import PRESETS
from torchmpo.runs.errors import UserError

ORIGINAL, TARGET = 1000.0, 3000.0
VOID = {"meta", "br", "wbr", "img", "link", "input", "hr"}
HOSTILE = """evil:<script>alert(1)</script>"'&$x^{2$é"""


def make_cell(loss, data, level, *, seeds=5, spread=0.02, diverged=(), trials=2, epochs=3):
    """A finished cell whose seeds score about ``level``."""
    draw = random.Random(f"{loss} {data}")

    def seed(k, values):
        return None if k in diverged else values

    def curve(start, slope):
        lines = [
            [start + slope * e + draw.gauss(0, 0.1) for e in range(epochs + 1)] for _ in scores
        ]
        return [[v if k not in diverged or e < 2 else None for e, v in enumerate(line)]
                for k, line in enumerate(lines)]  # fmt: skip

    scores = [level + spread * (k - (seeds - 1) / 2) for k in range(seeds)]
    returns = [[ORIGINAL + (TARGET - ORIGINAL) * s + d for d in (-50.0, 50.0)] for s in scores]
    return {
        "loss": loss,
        "task": "tla",
        "data": data,
        "grid": [{"beta": 0.5**i} for i in range(trials)],
        "tuning": [[1111.0 + i, 2221.0] for i in range(trials - 1)] + [[None, 2000.0]],
        "best": -1 if len(diverged) == seeds else trials - 2,
        "returns": [seed(k, r) for k, r in enumerate(returns)],
        "curves": {
            "epoch": list(range(epochs + 1)),
            "chosen": curve(-5, 1),
            "rejected": curve(-5, -2),
            "accuracy": [[0.5] * (epochs + 1) for _ in scores],
        },
        "margins": [seed(k, [draw.gauss(2, 3) for _ in range(40)]) for k in range(seeds)],
        "seconds": 1.0,
    }


def make_folder(folder: Path, cells, config=()) -> dict:
    """A run folder as the command line leaves it; returns the leaderboard."""
    anchors = {"original": [ORIGINAL - 30, ORIGINAL + 30], "target": [TARGET - 70, TARGET + 70]}
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    for i, cell in enumerate(cells):
        (folder / "cells" / f"{i}.json").write_text(json.dumps(cell))
    (folder / "anchors.json").write_text(json.dumps(anchors))
    data = ",".join(dict.fromkeys(cell["data"] for cell in cells))
    settings = {"task": "tla", "data": data, "pairs": 1280, "epochs": 12} | dict(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    write_leaderboard(leaderboard(cells, anchors), folder)
    return json.loads((folder / "leaderboard.json").read_text())


def spread(level):
    keys = ("mean", "sd", "lowest", "5 %", "median", "95 %", "highest")
    return {key: level + i for i, key in enumerate(keys)}


def described(flipped: float) -> dict:
    """What one kind of data consists of."""
    agents = {
        "original": {"trajectories": 1281, "return": spread(1000.0), "length": spread(500.0)}
        | {"return_counts": [9, 1], "terminated": 0.4567},
        "target": {"trajectories": 0, "return": dict.fromkeys(spread(0)), "terminated": None}
        | {"return_counts": [0, 0], "length": dict.fromkeys(spread(0))},
    }
    kinds = {"target–target": 0.25, "target–original": 0.512, "original–original": 0.238}
    return {
        "pairs": 1280,
        "pair_kinds": kinds,
        "target_chosen": 0.9,
        "flipped": flipped,
        "chosen_return": 2400.0,
        "margin": spread(-300.0),
        "margin_counts": [3, 1, 7, 0],
        "agents": agents,
    }


STATISTICS = {
    "edges": {"return": [0.0, 1.0, 2.0], "margin": [-2.0, -1.0, 0.0, 1.0, 2.0]},
    "kinds": {"base": described(0.0), "noisy:0.3": described(0.2876), "gone": described(0.5)},
}


class Page(HTMLParser):
    """Elements, attributes and visible text; complains of what is not well formed."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.open, self.words, self.elements = text, [], [], []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br":
            self.handle_data(" ")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert "svg" in self.open, f"<{tag}/> is not HTML"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"script", "style"} & set(self.open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def visible(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, *first: str) -> str:
        """The text of the only table row that begins with these cells."""
        [row] = [r for r in self.rows if tuple(r[: len(first)]) == first]
        return " ".join(row)

    def tags(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page(write_page(folder).read_text("utf-8"))


def shown(value: float, digits: int) -> str:
    """A number as the page should print it."""
    return f"{value:,.{digits}f}".replace("-", "−")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four losses, two kinds of data; one seed diverged, one cell altogether."""
    folder = tmp_path_factory.mktemp("run")
    cells = [
        make_cell("dpo", "noisy:0.3", 0.6),
        make_cell("pkg.mod:mine", "noisy:0.3", 0.61),
        make_cell("simpo", "noisy:0.3", -1.7, diverged=(1,)),
        make_cell("rrhf", "noisy:0.3", 0.1, diverged=range(5)),
        make_cell("dpo", "base", 0.7),
        make_cell("pkg.mod:mine", "base", 0.95),
        make_cell("simpo", "base", 0.5),
        make_cell("rrhf", "base", 0.3),
    ]
    make_folder(folder, cells, {"data": "noisy:0.3,base"})
    (folder / "statistics.json").write_text(json.dumps(STATISTICS))
    return folder


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return page_of(folder)


def test_page_is_well_formed_with_unique_ids(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', page.text)
    assert targets  # links to sections, clip paths of figures
    assert set(targets) <= set(ids)


def test_no_markup_is_escaped_by_mistake(page):
    assert not re.findall(r"</?(?:code|b|small|td|wbr|svg)>", page.visible)


def test_page_asks_nothing_of_the_network(page):
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            if (tag, name) == ("a", "href") and value.startswith("https://arxiv.org/abs/"):
                continue  # opened by a reader alone
            if name in ("src", "href"):
                assert value.startswith(("#", "data:")), (tag, value)
            assert "//" not in (value or "").partition(";base64,")[0], (tag, name, value)
    assert page.tags("link") == []
    [style] = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_policy_allows_this_script_and_no_other(page):
    [script] = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [m["content"] for m in page.tags("meta") if "http-equiv" in m]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_number_of_the_leaderboard_is_shown(folder, page):
    board = json.loads((folder / "leaderboard.json").read_text())
    for row in board["rows"]:
        line = page.row(row["loss"], row["data"])
        value, score, iqm = row["return"], row["score"], row["iqm"]
        assert f"{shown(score['mean'], 2)} " in line
        assert f"{shown(iqm['value'], 2)} " in line
        for entry in (score, iqm):
            if entry["low"] is not None:
                assert f"[{shown(entry['low'], 2)}, {shown(entry['high'], 2)}]" in line
        if value["mean"] is not None:
            assert f"{shown(value['mean'], 0)} ± {shown(value['se'], 0)}" in line
            assert "beta = 1" in line.replace("\xa0", " ")
        best, worst = row["rank"]["best"], row["rank"]["worst"]
        assert f" {best} " in line if best == worst else f" {best}–{worst} " in line
        assert line.endswith(f"{row['trials']} {row['seeds']} {row['diverged']}")
    for row in board["overall"]:
        score, iqm = row["score"], row["iqm"]
        whole = f"{shown(score['mean'], 2)} [{shown(score['low'], 2)}, {shown(score['high'], 2)}]"
        whole += f" IQM {shown(iqm['value'], 2)} [{shown(iqm['low'], 2)}, {shown(iqm['high'], 2)}]"
        best, worst = row["rank"]["best"], row["rank"]["worst"]
        whole += f" rank {best}" if best == worst else f" rank {best}–{worst}"
        assert any(r[0] == row["loss"] and r[1] == whole for r in page.rows if r)
    for kind in board["improvement"].values():
        for others in kind.values():
            assert all(shown(entry["p"], 2) in page.words for entry in others.values())


def test_data_kinds_are_in_the_order_asked_for_and_losses_best_first(page):
    matrix = [r for r in page.rows if len(r) == 4]
    assert matrix[0] == ["loss", "all data", "noisy:0.3", "base"]
    assert [r[0] for r in matrix[1:5]] == ["pkg.mod:mine", "dpo", "simpo", "rrhf"]


def test_diverged_cells_and_seeds_are_marked(page):
    matrix = {r[0]: r for r in page.rows if len(r) == 4}
    assert "✕ 1 of 5 seeds" in matrix["simpo"][2]
    assert matrix["rrhf"][2].startswith("✕ diverged counted as −1.")
    assert "✕" not in "".join(matrix["dpo"])
    told = "Diverged: simpo on noisy:0.3 (1 of 5 seeds) and rrhf on noisy:0.3 (5 of 5 seeds)."
    assert told in page.visible
    assert "Worse than the original agent: simpo on noisy:0.3 (−1.7" in page.visible
    assert "rrhf on noisy:0.3 (−" not in page.visible  # nothing was measured there


def test_a_start_that_is_not_the_original_agents_is_told(capsys):
    agents = {"original": {"mean": 500.0}, "target": {"mean": 3600.0}}
    _tell_start(agents | {"start": {"mean": 600.0}})
    assert not capsys.readouterr().err
    _tell_start(agents | {"start": {"mean": -2445.0}})
    assert "note: training starts at a score of -0.95, not" in capsys.readouterr().err


def test_tuning_agents_data_and_settings_are_shown(page):
    assert "beta\xa0=\xa01 1,666 (1,111, 2,221) 1,666 (1,111, 2,221)" in [
        " ".join(row) for row in page.rows
    ]
    assert "✕ 1 diverged" in page.visible
    # Seven cells were trained, each with its best setting marked; rrhf diverged on noisy data.
    marked = re.findall(r"<mark>(.*?)</mark>", page.text)
    assert marked == ["1,666"] * 7
    assert page.row("original agent") == "original agent 0 1,000 30 970 1,030 2"
    assert page.row("target agent") == "target agent 1 3,000 70 2,930 3,070 2"
    margin = "−300 −299 −297 −296 −295"
    assert page.row("noisy:0.3", "1,280") == (
        f"noisy:0.3 1,280 28.8 % 25.0 % 51.2 % 23.8 % 90.0 % 2,400 {margin}"
    )
    assert page.row("base", "original") == (
        "base original 1,281 1,000 1,001 1,003 1,004 1,005 502 500 45.7 %"
    )
    assert page.row("base", "target") == "base target 0 – – – – – – – –"
    assert "gone" not in page.visible  # of a data kind that no loss was run on
    assert "28.8% flipped" in page.visible
    assert page.row("epochs") == "epochs 12"


def test_imitation_and_the_kinds_are_explained(page):
    line = "What is chosen in the data returns 2,400 (0.70) on noisy:0.3 and 2,400"
    assert line in page.visible
    assert "every label flipped with probability P" in page.visible


def test_words_are_explained_before_the_first_number_in_a_table(page):
    text = page.text
    for word in ("Original agent", "Target agent", "Preference data", "Score"):
        assert text.index(f"<dt>{word}</dt>") < text.index("<table"), word
    assert text.index("one trajectory of the original agent and one") < text.index("<table")


def test_losses_have_their_equations_and_papers(page):
    [section] = re.findall(r'<section id="Losses">(.*?)</section>', page.text, re.DOTALL)
    assert "−(1 − ε)·LS(βD)" in section
    assert 'href="https://arxiv.org/abs/2305.18290"' in section
    assert "python -m torchmpo.show dpo" in section


def test_numbers_can_be_saved_from_the_page_alone(folder, page):
    saved = {a["download"]: a["href"] for a in page.tags("a") if "download" in a}
    assert "leaderboard.csv" in saved
    assert any(name.endswith(".json") for name in saved)
    for name, content in saved.items():
        data = content.partition(";base64,")[2]
        assert base64.b64decode(data) == (folder / name).read_bytes()


def test_how_it_was_made_is_told(tmp_path):
    make_folder(tmp_path, [make_cell("dpo", "base", 0.5)])
    assert 'class="made">0:05 of computing' not in write_page(tmp_path).read_text()
    start = {"command": "python -m torchmpo.diagnose --losses '<b>'", "torchmpo": "1.2.3"}
    (tmp_path / "commands.json").write_text(json.dumps([start | {"date": "2026-11-27T10:00:00"}]))
    (tmp_path / "machines.json").write_text('[{"processor": "A Processor", "cores": 2}]')
    text = write_page(tmp_path).read_text()
    assert "torchmpo 1.2.3 · 2026-11-27 · A Processor, 2 cores · " in text
    assert "<code>python -m torchmpo.diagnose --losses &#39;&lt;b&gt;&#39;</code>" in text
    for damaged in ("", "[", "{}", "[1]", "[" * 100_000):
        (tmp_path / "commands.json").write_text(damaged)
        (tmp_path / "machines.json").write_text(damaged)
        write_page(tmp_path)


def test_why_a_loss_fell_is_told(tmp_path):
    cell = make_cell("dpo", "base", -0.5)
    cell["curves"]["chosen"] = [[-1.0, -0.5, -2.0, -3.0]] * 5
    cell["curves"]["rejected"] = [[-1.0, -1.5, -2.0, -3.0]] * 5
    moved = {"chosen": -2.0, "rejected": -2.5, "learned": 0.25, "unlearned": 0.125}
    paired = {"ranking": 0.5, "idealised": 0.75, "alignment_gap": 0.25, "gradient_start": 0.5}
    paired |= {"gradient_end": 0.625, "drift_chosen": -2.0, "drift_chosen_time": 0.75}
    paired |= {"drift_rejected": -2.5, "drift_rejected_time": 0.25, "area": 0.125}
    moved |= {"kl_to_start": 7.25, "distance": 3.5}
    cell["why"] = [moved | paired] * 3 + [moved, None]  # the last but one is of an older version
    make_folder(tmp_path, [cell, make_cell("sft", "base", 0.5)])
    text = write_page(tmp_path).read_text()
    [section] = re.findall(r'<section id="Why">(.*?)</section>', text, re.DOTALL)
    words = " ".join(re.sub("<[^>]*>", " ", section).split())
    assert (
        "dpo ended at −0.50. The likelihood of the rejected side was below its start from" in words
    )
    assert (
        "from epoch 1 on. The likelihood of the chosen side was below its start from epoch 2"
        in words
    )
    assert "the chosen side went by −2.00 and the rejected one by −2.50 nats per step" in words
    assert "the rejected side had gone half of its way after 25 % of it" in words
    assert section.count("<svg") == 1  # the curves of what fell
    assert "dpo −0.50 −2.00 −2.50 25.0 % 12.5 % 7.25 3.50" in words
    assert "dpo 50.0 % 75.0 % 25.0 % 50.0 % 62.5 % −2.00 75.0 % −2.50 25.0 % 0.12" in words
    assert "sft ended" not in words


def test_a_smoke_run_says_that_it_says_nothing(tmp_path):
    cells = [make_cell("dpo", "base", 0.5)]
    make_folder(tmp_path, cells, PRESETS["smoke"] | {"losses": "dpo", "data": "base"})
    assert "say nothing about losses" in write_page(tmp_path).read_text()
    make_folder(tmp_path, cells)
    assert "say nothing about losses" not in write_page(tmp_path).read_text()


def test_kinds_of_other_trajectories_have_edges_and_makers_of_their_own(tmp_path):
    graded = described(0.0)
    agent = graded["agents"]["original"] | {"return_counts": [2, 3]}
    graded |= {"agents": {"0 to 0.4 of the way": agent}, "pair_kinds": {}, "target_chosen": None}
    graded |= {"edges": {"return": [0, 9, 18], "margin": [-18, -9, 0, 9, 18]}, "agreement": 0.75}
    kind = "graded:0-0.4+votes:4"
    statistics = {**STATISTICS, "kinds": {**STATISTICS["kinds"], kind: graded}}
    make_folder(tmp_path, [make_cell("sft", data, 0.5) for data in ("base", kind)])
    (tmp_path / "statistics.json").write_text(json.dumps(statistics))
    page = Page(write_page(tmp_path).read_text())
    # Pairs by agents are not told, votes are.
    assert page.row(kind, "1,280").startswith(f"{kind} 1,280 0.0 % – – – – 75.0 % 2,400")
    assert page.row("base", "1,280").startswith("base 1,280 0.0 % 25.0 % 51.2 % 23.8 % 90.0 % –")
    assert "0 to 0.4 of the way" in page.visible
    assert "the majority of K votes" in page.visible
    figures.data(STATISTICS["edges"], {kind: graded, "base": described(0.0)})


def marked(page: Page) -> dict[str, list[str]]:
    """Column of the leaderboard → the losses with a bar, as a browser would show them."""
    [matrix] = re.findall(r'<table class="sortable matrix">.*?</table>', page.text, re.DOTALL)
    head, body = matrix.split("<tbody>")
    kinds = re.findall(r"<th[^>]*>(.*?)</th>", head)[1:]
    bars: dict[str, list[str]] = {kind: [] for kind in kinds}
    for line in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL):
        [loss] = re.findall(r'data-sort="(.*?)">', line.split("</th>")[0])
        for kind, classes in zip(kinds, re.findall(r'<td [^>]*?class="(.*?)"', line), strict=True):
            if "lead" in classes.split():
                bars[kind].append(loss)
    return bars


RESULTS = Path(__file__).parents[2] / "experiments" / "results"


@pytest.mark.parametrize(
    "name", ["quick_tla", "full_tla_all_steps", "full_hopper", "128_pairs_rate_3e-4"]
)
def test_headline_table_and_figure_name_the_same_losses(tmp_path, monkeypatch, name):
    """And ranks and files: the best are those than which no other loss is shown to be better."""
    recorded = RESULTS / f"diagnose_{name}"
    cells = [json.loads(path.read_text()) for path in sorted(recorded.glob("cells/*.json"))]
    board = leaderboard(cells, json.loads((recorded / "anchors.json").read_text()))
    write_leaderboard(board, tmp_path)
    (tmp_path / "config.yaml").write_text((recorded / "config.yaml").read_text())
    drawn = {}

    def save(folder, name, label, draw, *data):  # figures take long; what is blue is decided before
        drawn[name] = data
        return ""

    monkeypatch.setattr(figures, "save", save)
    page = page_of(tmp_path)

    expected = {row["data"]: set() for row in board["rows"]}
    for kind in expected:
        runs = {c["loss"]: [sum(e) / len(e) for e in c["returns"]] for c in cells
                if c["data"] == kind}  # fmt: skip
        better = []  # an oracle: SciPy's paired t and p-values, Holm's steps from the smallest
        pairs = [(a, b) for a in runs for b in runs if sum(runs[a]) > sum(runs[b])]
        p = {(a, b): stats.ttest_rel(runs[a], runs[b]).pvalue for a, b in pairs}
        for step, pair in enumerate(sorted(pairs, key=lambda pair: p[pair])):
            if p[pair] * (len(pairs) - step) >= 0.05:
                break
            better.append(pair)
        expected[kind] = runs.keys() - {b for _, b in better}
        assert len(expected[kind]) < len(runs) or not better

    bars = marked(page)
    blue = {title: {loss for loss, v in values.items() if v["lead"]}
            for title, values in drawn["intervals"][0].items()}  # fmt: skip
    top = [r for r in board["rows"] if r["rank"]["rank"] == 1]
    first = {kind: {r["loss"] for r in top if r["data"] == kind} for kind in expected}
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    in_csv = {kind: {r["loss"] for r in rows if r["data"] == kind and r["rank"] == "1"}
              for kind in expected}  # fmt: skip
    if len(expected) > 1:
        expected["all data"] = {r["loss"] for r in board["overall"] if r["rank"]["rank"] == 1}
    assert {kind: set(losses) for kind, losses in bars.items()} == blue == expected
    assert first == in_csv == {kind: expected[kind] for kind in first}

    # The headline names those that are best on every kind.
    everywhere = set.intersection(*(expected[kind] for kind in first))
    [told] = re.findall(r'<p class="headline">(.*?)</p>', page.text)
    named = re.sub("<.*?>", "", told.partition(" on ")[0])
    if len(everywhere) < len(board["overall"]) and everywhere:
        words = set(re.split(r"[ ,]+", named))
        assert everywhere & words == everywhere or "more" in words
        assert words.isdisjoint({r["loss"] for r in rows} - everywhere)


def test_blue_is_what_no_loss_is_shown_to_be_better_than(tmp_path):
    """Not only the highest: what scatters widely on top is not shown to be better."""
    cells = [
        make_cell(loss, data, level, spread=spread, diverged=diverged)
        for data in ("base", "mixed")
        for loss, level, spread, diverged in [
            ("wide", 0.9, 0.4, ()),
            ("narrow", 0.7, 0.01, ()),
            ("lower", 0.5, 0.01, ()),
            ("lost", 0.5, 0.01, range(5)),
        ]
    ]
    board = make_folder(tmp_path, cells)
    run = Run(board, cells, {}, {}, {}, tmp_path)
    columns, _ = columns_of(run)
    assert list(columns) == ["all data", "base", "mixed"]
    for values in columns.values():
        lead = {loss: row["lead"] for loss, row in values.items()}
        assert [lead[loss] for loss in ("wide", "narrow", "lower")] == [True, True, False]
    assert columns["base"]["lost"]["value"] is None


@pytest.mark.parametrize("seeds", [5, 10])
def test_few_seeds_are_told(tmp_path, seeds):
    cells = [make_cell(loss, "base", 0.5, seeds=seeds) for loss in ("a", "b", "c")]
    make_folder(tmp_path, cells)
    # Student's t with 4 degrees of freedom at a third of the level: 0.0083 on each side.
    told = "with 3 losses and 5 seeds, a difference is shown where it is some 4.0 times its"
    assert (told in page_of(tmp_path).visible) == (seeds == 5)


def test_differences_with_the_highest_are_shown(folder, page):
    found = json.loads((folder / "leaderboard.json").read_text())["differences"]["base"]
    for loss, d in found["pkg.mod:mine"].items():
        [row] = [r for r in page.rows if r and r[0] == loss and r[-1] in ("shown", "not shown")
                 and r[1] == shown(d["mean"], 0)]  # fmt: skip
        assert row[2] == f"[{shown(d['low'], 0)}, {shown(d['high'], 0)}]"
        assert row[-1] == ("shown" if d["corrected"] < 0.05 else "not shown")
    assert "pkg.mod:mine minus each other loss: mean return over seeds, paired" in page.visible


def test_clamped_logits_are_told(tmp_path):
    cells = [make_cell("orpo", "base", 0.5), make_cell("sft", "base", 0.6)]
    make_folder(tmp_path, cells)
    assert "clamped" not in page_of(tmp_path).visible  # as in older cells
    for one, share in zip(cells, (0.25, 0.0), strict=True):
        one["curves"]["clamped"] = [[0.0, share], None, [share, 0.0]]
    make_folder(tmp_path, cells)
    assert (
        "clamped where a loss takes their logit: orpo on base (12 %)." in page_of(tmp_path).visible
    )


def test_protocol_is_a_sentence(page):
    assert (
        "4 losses on 2 kinds of preference data (noisy:0.3 and base, 1,280 pairs each) from the "
        "three-legged ant. On each, a loss was tuned over 2 settings of its hyper-parameters; the "
        "best was trained anew on 5 fresh seeds for 12 epochs, and judged by the true return of 2 "
        "episodes per seed."
    ) in page.visible


def test_figures_are_saved_whole_and_follow_the_scheme(folder, page):
    names = {"intervals", "ranks", "profiles", "agents", "data"} | {
        f"{what}-{kind}"
        for what in ("improvement", "curves", "margins")
        for kind in ("base", "noisy-0.3")
    }
    assert {p.name for p in (folder / "figures").iterdir()} == {
        f"{name}.{end}" for name in names for end in ("png", "svg")
    }
    for name in names:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            image.verify()
        root = ElementTree.parse(folder / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
    assert len(page.tags("svg")) == len(names)
    assert all(attrs["aria-label"] for attrs in page.tags("svg"))
    inside = "".join(re.findall(r"<svg.*?</svg>", page.text, re.DOTALL))
    assert "var(--ink)" in inside
    assert not re.findall(r"(?:fill|stroke): ?(?:#000|black|#fff|white)", inside)


def test_same_folder_same_bytes_and_old_figures_go(folder):
    before = write_page(folder).read_bytes()
    pictures = {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}
    (folder / "figures" / "curves-gone.png").write_text("of a data kind no longer run")
    assert write_page(folder).read_bytes() == before
    assert {p.name: p.read_bytes() for p in (folder / "figures").iterdir()} == pictures


def test_names_from_users_are_text(tmp_path):
    cells = [make_cell(HOSTILE, HOSTILE, 0.5), make_cell("dpo", HOSTILE, 0.9)]
    cells[0]["grid"] = [{"<img src=x onerror=alert(1)>": 1.0}, {"b": "</script><b>"}]
    make_folder(tmp_path, cells, {"<i>": "</code><script>", "epochs": "<i>"})
    page = page_of(tmp_path)
    assert len(page.tags("script")) == 1
    assert page.tags("img") == page.tags("i") == []
    assert page.row(HOSTILE, HOSTILE)
    assert page.row("<i>") == "<i> </code><script>"
    assert "<img src=x onerror=alert(1)>" in page.visible


def test_one_loss_has_nobody_to_be_compared_with(tmp_path):
    make_folder(tmp_path, [make_cell("dpo", "base", 0.5)])
    page = page_of(tmp_path)
    assert "dpo alone was run: there is nothing to compare it with." in page.visible
    assert "Probability of improvement" not in page.visible.replace("IQM, probability", "")
    assert "all data" not in page.visible


def test_one_seed_has_no_interval_and_no_winner(tmp_path):
    cells = [make_cell(loss, "base", level, seeds=1) for loss, level in (("a", 0.9), ("b", 0.1))]
    make_folder(tmp_path, cells)
    page = page_of(tmp_path)
    assert "no loss can be called better" in page.visible
    assert "without an interval that is no ranking" in page.visible
    assert page.row("a", "base").startswith("a base 2,800 0.90  0.90  1–2 ")


def test_nothing_finished(tmp_path):
    cells = [make_cell(loss, "base", 0.5, seeds=2, diverged=(0, 1)) for loss in ("a", "b")]
    make_folder(tmp_path, cells)
    page = page_of(tmp_path)
    assert "no training of any loss finished" in page.visible
    assert page.row("a", "base").endswith("2 2 2")


def test_a_loss_with_nothing_to_tune(tmp_path):
    cells = [make_cell("dpo", "base", 0.5), make_cell("sft", "base", 0.6)]
    cells[1] |= {"grid": [{}], "tuning": [], "best": 0}
    # Once, such a loss was tuned nevertheless.
    old = make_cell("sft", "mixed", 0.6) | {"grid": [{}, {}], "tuning": [[5.0], [5.0]]}
    cells += [make_cell("dpo", "mixed", 0.5), old]
    make_folder(tmp_path, cells)
    page = page_of(tmp_path)
    assert "a loss was tuned over 2 settings of its hyper-parameters; the best" in page.visible
    assert page.row("sft", "base").endswith("defaults nothing to tune 0 5 0")
    assert page.row("sft", "mixed").endswith("defaults 2 5 0")
    assert "Not tuned on base." in page.visible
    assert page.rows.count(["defaults", "5"]) == 2

    del cells[2:]
    for path in (tmp_path / "cells").iterdir():
        path.unlink()
    make_folder(tmp_path, cells)
    assert "hyper-parameters (sft not); the best" in page_of(tmp_path).visible
    make_folder(tmp_path, cells[1:])
    words = "Nothing was tuned: on each, a loss was trained on 5 fresh seeds for 12 epochs"
    assert words in page_of(tmp_path).visible


def test_one_trial_is_no_tuning_and_a_run_that_diverged_trained_nothing(tmp_path):
    one = make_cell("dpo", "base", 0.5) | {"grid": [{"beta": 0.1}], "tuning": [], "best": 0}
    make_folder(tmp_path / "one", [one, make_cell("sft", "base", 0.6)])
    assert page_of(tmp_path / "one").row("dpo", "base").endswith("0.1 not tuned 0 5 0")
    lost = make_cell("dpo", "base", 0.5, diverged=range(5)) | {"returns": []}
    make_folder(tmp_path / "lost", [lost])
    words = page_of(tmp_path / "lost").visible
    assert "from the three-legged ant. No training came to its end." in words
    assert "judged by the true return of" not in words


def test_pairs_and_start_are_those_used(tmp_path):
    config = {"pairs": None, "start": None}
    board = make_folder(tmp_path, [make_cell("dpo", "base", 0.5)], config)
    assert "pairs each" not in page_of(tmp_path).visible
    board |= {"pairs": 5120, "start": "scratch"}
    (tmp_path / "leaderboard.json").write_text(json.dumps(board))
    told = page_of(tmp_path).visible
    assert "(base, 5,120 pairs each)" in told
    assert "for 12 epochs, from scratch, and judged" in told


def test_without_scores_there_are_returns(tmp_path):
    cells = [
        make_cell("a", "base", 0.9),
        make_cell("b", "base", -0.5),
        make_cell("c", "base", 0.5, diverged=range(5)),
        make_cell("a", "mixed", 0.5),
    ]
    make_folder(tmp_path, cells)
    anchors = {"original": [1500.0, 1500.0], "target": [900.0, 900.0]}
    (tmp_path / "anchors.json").write_text(json.dumps(anchors))
    write_leaderboard(leaderboard(cells, anchors), tmp_path)
    page = page_of(tmp_path)
    assert (
        "No scores: the target agent’s mean return, 900, is not above the original’s, 1,500."
        in (page.visible)
    )
    assert "base: a (2,800 [2,7" in page.visible
    assert "Worse than the original agent: b on base (0 [−" in page.visible
    [matrix, *_] = [r for r in page.rows if r[0] == "a"]
    assert matrix[1].startswith("2,800 [2,7")
    assert "Score: 0 is" not in page.visible
    assert "all data" not in page.visible
    assert page.row("c", "base").startswith("c base – 3 –")
    assert page.row("original agent").startswith("original agent – 1,500 0")
    assert not (tmp_path / "figures" / "intervals.svg").exists()


def test_a_leaderboard_alone_is_enough(tmp_path):
    make_folder(tmp_path, [make_cell("a", "base", 0.5), make_cell("b", "base", 0.6)])
    shutil.rmtree(tmp_path / "cells")
    (tmp_path / "anchors.json").unlink()
    (tmp_path / "config.yaml").unlink()
    page = page_of(tmp_path)
    assert "Training" not in page.visible
    assert page.row("original agent") == "original agent 0 1,000 30 – – –"


def test_cells_without_curves(tmp_path):
    cells = [make_cell("a", "base", 0.5), make_cell("b", "base", 0.6)]
    del cells[0]["curves"], cells[0]["margins"]
    cells[1]["curves"] = {"epoch": [], "chosen": [], "rejected": [], "accuracy": []}
    cells[1]["margins"] = [None, [None, None], [], [math.nan], [1.0]]
    make_folder(tmp_path, cells)
    page = page_of(tmp_path)
    assert "no curve" in page.visible
    assert "no margins" in page.visible


def test_missing_and_damaged_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"leaderboard\.json"):
        write_page(tmp_path)
    make_folder(tmp_path, [make_cell("a", "base", 0.5)])
    (tmp_path / "cells" / "0.json").write_text("{")
    with pytest.raises(UserError, match=r"0\.json is damaged"):
        write_page(tmp_path)
    (tmp_path / "cells" / "0.json").unlink()
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_large_figures_become_pixels(tmp_path, monkeypatch):
    make_folder(tmp_path, [make_cell(loss, "base", 0.5) for loss in ("a", "b<")])
    monkeypatch.setattr(figures, "LARGEST_SVG", 0)
    page = page_of(tmp_path)
    assert page.tags("svg") == []
    for attrs in page.tags("img"):
        assert attrs["alt"]
        assert base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"))[1:4] == b"PNG"


def test_forty_losses_stay_small(tmp_path):
    # Of other spreads: among equal differences Wilcoxon's test counts all permutations.
    cells = [
        make_cell(f"pkg{i}.mod:fn{i}", "base", i / 40, seeds=10, epochs=12, spread=0.02 + 7e-4 * i)
        for i in range(40)
    ]
    make_folder(tmp_path, cells)
    assert 5 * write_page(tmp_path).stat().st_size < 5_000_000  # five kinds of data


def run_of(*scores: dict[str, tuple[float, float]]) -> Run:
    """A run with given intervals, a dictionary for each kind of data."""
    rows = []
    for kind, intervals in zip("xyz", scores):
        for loss, (low, high) in intervals.items():
            best = 1 + sum(other > high for other, _ in intervals.values())
            worst = len(intervals) - sum(other < low for _, other in intervals.values())
            mean = {"mean": (low + high) / 2, "se": 0.1, "low": low, "high": high}
            rank = {"rank": best, "best": best, "worst": worst}
            row = {"loss": loss, "data": kind, "score": mean, "return": mean, "rank": rank}
            rows.append(row | {"trials": 8, "seeds": 5, "episodes": 100, "diverged": 0})
    return Run({"task": "walker", "rows": rows, "overall": []}, [], {}, {}, {}, Path())


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([{"a": (0.8, 0.9), "b": (0.1, 0.2)}], "a is best on x."),
        ([{"a": (0.8, 0.9), "b": (0.1, 0.2)}] * 2, "a is best on each kind of data."),
        ([{"a": (0.1, 0.9), "b": (0.1, 0.8)}] * 2, "No loss can be told from another on each kin"),
        (
            [{"a": (0.8, 0.9), "b": (0.1, 0.2)}, {"a": (0.7, 0.9), "b": (0.6, 0.8)}],
            "No loss is shown to be better than a on any kind of data; every other loss is shown",
        ),
        (
            [{"a": (0.8, 0.9), "b": (0.7, 0.85), "c": (0.0, 0.1)}],
            "No loss is shown to be better than a or b on x.",
        ),
        (
            [{"a": (0.8, 0.9), "b": (0.1, 0.2)}, {"a": (0.1, 0.2), "b": (0.5, 0.8)}],
            "No loss is among the best on every kind of data; a and b are on 1 of 2.",
        ),
    ],
)
def test_headline_claims_no_more_than_the_intervals(scores, words):
    assert re.sub("<.*?>", "", headline(run_of(*scores))).startswith(words)


def words_of(run):
    return [f"{topic} {re.sub('<.*?>', '', told)}" for topic, told in findings(run)]


def test_a_loss_that_did_not_run_is_not_said_to_be_worse():
    run = run_of(
        {"a": (0.4, 0.5), "b": (0.4, 0.5), "c": (0.0, 0.1)}, {"a": (0.4, 0.5), "c": (0, 0)}
    )
    told = re.sub("<.*?>", "", headline(run))
    assert "every other loss is shown" not in told
    assert "of the others that ran on all of them, each is shown to be worse on one" in told
    assert "Not run: b on y; what is said of every kind leaves those losses out." in words_of(run)


def test_what_never_finished_ended_nowhere():
    """A score stands for it, the worst of the others'; no sentence is made of that."""
    run = run_of({"a": (-0.9, -0.5), "b": (-0.9, -0.9)})
    run.rows["b", "x"]["return"] = {"mean": None}
    cells = [{"loss": loss, "data": "x", "curves": {}} for loss in "ab"]
    run.cells = {(cell["loss"], "x"): cell for cell in cells}
    assert list(fell(run, "x")) == ["a"]
    run.rows["a", "x"]["return"] = {"mean": None}
    assert str(headline(run)) == "No training of any loss finished."
    assert not [line for line in words_of(run) if line.startswith("Few seeds")]


@pytest.mark.parametrize(
    "losses",
    [
        ["runs/evolve_seed1/objective", "runs/evolve_seed2/objective", "orpo"],
        [f"{'very/' * 9}long/{k}/and/the/same/end/everywhere" for k in range(12)],
        ["a.b:loss", "c.d:loss", "loss"],
    ],
)
@pytest.mark.parametrize("most", [16, 22])
def test_names_in_figures_stay_apart(losses, most):
    names = shorten(losses, most)
    assert len(set(names)) == len(losses)
    assert all(len(name) <= most for name in names)


def test_findings_say_who_is_tied_and_who_is_surely_below():
    run = run_of({"a": (0.8, 0.9), "b": (0.7, 0.86), "c": (-0.5, -0.3), "d": (-0.4, 0.1)})
    best, few, below = [f"{topic} {re.sub('<.*?>', '', told)}" for topic, told in findings(run)]
    assert few.startswith("Few seeds: with 4 losses and 5 seeds")
    told = "2 losses of 4 cannot be told apart: a (0.85 [0.80, 0.90]) and b (0.78 [0.70, 0.86])."
    assert best == f"x: {told}"
    assert below == "Worse than the original agent: c on x (−0.40 [−0.50, −0.30])."
    assert "from walker" in protocol(run)


# In a browser -------------------------------------------------------------------------------------

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the path")
DRIVE = """
const table = [...document.querySelectorAll("table.sortable")].find(
  (t) => t.caption.textContent === "Every loss on every kind of data");
const heads = [...table.tHead.rows[0].cells];
const seen = [];
const look = () => seen.push({
  sorted: heads.map((h) => h.getAttribute("aria-sort")),
  rows: [...table.tBodies[0].rows].map((r) => [...r.cells].slice(0, 2).map((c) => c.textContent)),
});
look();
for (const column of [3, 3, 0, 2]) { heads[column].querySelector("button").click(); look(); }
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify(seen);
document.body.append(result);
"""


# In a frame as wide as a phone or a laptop: what is wider than the page, and the smallest letters.
MEASURE = """
onload = () => {
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  page.querySelectorAll("details").forEach((d) => { d.open = true; });
  const wide = page.documentElement.clientWidth, out = [];
  for (const e of page.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > wide + 1 && !e.closest(".wide, figure, pre"))
      out.push(e.tagName + " " + e.textContent.slice(0, 40));
  }
  let smallest = 99;
  for (const e of page.querySelectorAll("body *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const svg = e.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(view.getComputedStyle(e).fontSize) * scale;
    if (e.getBoundingClientRect().width) smallest = Math.min(smallest, size);
  }
  const first = page.querySelector("table.matrix tbody th");
  first.closest(".wide").scrollLeft = 200;
  const left = first.getBoundingClientRect().left;
  const scroll = page.documentElement.scrollWidth;
  document.querySelector("pre").textContent = JSON.stringify({ wide, scroll, out, smallest, left });
};
"""


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=5000", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_browser_runs_the_script_and_complains_of_nothing(folder, page, tmp_path):
    document, console = browse(folder / "report.html", tmp_path)
    assert console == []
    [head, *_] = re.findall(r"<thead>(.*?)</thead>", document)
    assert head.count("<button") == 4  # the policy let the page's own script run


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_clipped_and_letters_are_large_enough(folder, page, tmp_path, width):
    inner = escape(re.sub(r"<meta http-equiv[^>]*>", "", page.text))
    frame = f'<iframe width="{width}" height="800" style="border:0" srcdoc="{inner}"></iframe>'
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!DOCTYPE html><pre></pre>{frame}<script>{MEASURE}</script>")
    document, _ = browse(outer, tmp_path / "profile")
    [text] = re.findall(r"<pre>(\{.*?\})</pre>", document, re.DOTALL)
    seen = json.loads(unescape(text))
    assert seen["out"] == []
    assert seen["scroll"] <= seen["wide"] <= width
    assert seen["smallest"] >= 11
    assert 0 <= seen["left"] < 60  # the names of the losses stay where they are


@needs_browser
def test_browser_blocks_any_other_script(folder, page, tmp_path):
    other = tmp_path / "other.html"
    other.write_text(
        page.text.replace("</body>", "<script>document.title='broken'</script></body>")
    )
    document, console = browse(other, tmp_path / "profile")
    assert "<title>Preference losses on the three-legged ant</title>" in document
    assert any("Content Security Policy" in line for line in console)


@needs_browser
def test_clicks_on_titles_sort_the_table(folder, page, tmp_path):
    driven = tmp_path / "driven.html"
    unlocked = re.sub(r"<meta http-equiv[^>]*>", "", page.text)
    driven.write_text(unlocked.replace("</body>", f"<script>{DRIVE}</script></body>"))
    document, console = browse(driven, tmp_path / "profile")
    assert console == []
    [text] = re.findall(r'<pre id="result">(.*?)</pre>', document, re.DOTALL)
    start, falling, rising, names, returns = json.loads(text)
    rows = json.loads((folder / "leaderboard.json").read_text())["rows"]
    score = {(r["loss"], r["data"]): r["score"]["mean"] for r in rows}

    def scores(state):
        return [score[tuple(row)] for row in state["rows"]]

    def direction(state):
        return {i: word for i, word in enumerate(state["sorted"]) if word}

    assert direction(start) == {}
    assert direction(falling) == {3: "descending"}
    assert scores(falling) == sorted(score.values(), reverse=True)
    assert direction(rising) == {3: "ascending"}
    assert scores(rising) == sorted(score.values())
    assert direction(names) == {0: "ascending"}
    assert [row[0] for row in names["rows"]] == sorted(loss for loss, _ in score)
    assert direction(returns) == {2: "descending"}
    assert returns["rows"][-1] == ["rrhf", "noisy:0.3"]  # a missing number comes last


def test_a_best_value_at_the_end_of_its_range_is_named(tmp_path):
    cells = [make_cell("orpo", "base", 0.5), make_cell("sft", "base", 0.4)]
    cells[0]["edge"] = ["learning_rate"]
    make_folder(tmp_path, cells)
    text = write_page(tmp_path).read_text()
    assert "Best at the end of a range:" in text
    assert "<code>orpo</code> on base (learning_rate)" in text
    assert "<code>sft</code> on base (" not in text


def test_where_imitation_alone_ends_is_said(tmp_path):
    cells = [make_cell("orpo", "base", 0.5), make_cell("sft", "base", 0.4)]
    make_folder(tmp_path, [*cells, make_cell("orpo", "mixed", 0.5)])
    text = write_page(tmp_path).read_text()
    assert "Imitation alone:</b> sft, which never sees what was rejected, 0.40 [" in text
    make_folder(tmp_path, cells[:1])
    assert "Imitation alone" not in write_page(tmp_path).read_text()


def test_what_the_rounds_of_self_play_train_on_is_said(tmp_path):
    make_folder(tmp_path, [make_cell("orpo", "base", 0.5)], {"rounds": 4, "loop": "spo"})
    assert "in 4 rounds, each on trajectories of its own policy" in page_of(tmp_path).visible


def test_rounds_and_what_they_cost_are_said(tmp_path):
    cell = make_cell("orpo", "base", 0.5)
    seeds = len(cell["returns"])
    cell |= {"labels": [128] * seeds, "environment_steps": [250_000] * seeds}
    make_folder(tmp_path, [cell], {"rounds": 4})
    page = page_of(tmp_path)
    assert "in 4 rounds, all but the first on trajectories of its own policy" in page.visible
    assert page.row("orpo", "base").endswith("0 128 250,000")
    with (tmp_path / "leaderboard.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (float(row["labels"]), float(row["environment_steps"])) == (128, 250_000)
