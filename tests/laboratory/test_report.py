import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest

from hf_kfc.errors import ConsolidationError
from laboratory.report import (
    Measures,
    ReportArguments,
    grid_table,
    load_models,
    run_report,
    verdict,
)
from laboratory.report.groups import description, group_of, in_order, is_control
from laboratory.report.tables import (
    baseline_table,
    signed,
    strength_table,
    summary_table,
    tier_table,
    with_error,
)

TASKS = ["articles", "patients", "notes"]
ALONE = {"articles": 0.8, "patients": 0.5, "notes": 0.4}
MINUS = "\N{MINUS SIGN}"
NEW = 0.3
"""Accuracy on any new task with no method."""

SETTINGS: dict[str, Any] = {
    "RankerArguments": {"ranker": "cnn", "num_layers": None},
    "LearningArguments": {"epochs": 1.0, "strengths": None, "seed": 0},
    "tasks": TASKS,
    "update_examples": None,
}

Effect = tuple[float, float]
"""Change of each old task in percent; points of the new task against none."""


def effects(kfc: Effect = (-3, -0.5), lora: Effect = (-9, 0.2)) -> dict[str, Any]:
    """By method, the effect of each strength; nothing is searched where there is none."""
    return {
        "none": (-20, 0),
        "ewc": {10.0: (-8, 0.5)},
        # On the test splits the stronger one is better, on the development splits it is refused.
        "kfc": {1.0: kfc, 10.0: (0, 0)},
        "replay": (-2, -0.9),
        "lora": lora,
    }


def record(point: Mapping[str, Any], test: Mapping[str, float], **lost: float) -> dict[str, Any]:
    validation = {task: value - lost.get(task, 0) for task, value in test.items()}
    return {"point": point, "validation": validation, "test": test, "seconds": 1800.0}


def references(seed: int, update: bool) -> list[dict[str, Any]]:
    def point(tasks, method):
        return {"seed": seed, "tasks": list(tasks), "method": method, "strengths": []}

    runs = []
    for task, value in ALONE.items():
        runs.append(record(point([task], "individual"), {task: value}))
        runs.append(record(point([task], "individual:0.1"), {task: value / 2}))
        if update:
            runs.append(record(point([task], "individual:update"), {task: value - 0.1}))
    for count in (2, 3):
        for tasks in combinations(TASKS, count):
            runs.append(record(point(tasks, "combined"), {task: ALONE[task] for task in tasks}))
    return runs


def chains(
    seed: int, first: bool, tier: int, methods: Mapping[str, Any], mild: bool
) -> list[dict[str, Any]]:
    """Runs on all permutations; where ``mild``, those that begin with notes lose half as much."""
    runs = []
    for tasks in permutations(TASKS, tier):
        for method, effect in methods.items():
            by_strength = effect if isinstance(effect, dict) else {None: effect}
            for strength, (change, points) in by_strength.items():
                if not (first or strength == next(iter(by_strength))):
                    continue
                share = change / (2 if mild and tasks[0] == "notes" and method == "none" else 1)
                test = {task: ALONE[task] * (1 + share / 100) for task in tasks[:-1]}
                test[tasks[-1]] = NEW + points / 100
                strengths = [] if strength is None else [strength] * (tier - 1)
                point = {"seed": seed, "tasks": list(tasks), "method": method}
                lost = {tasks[-1]: 0.05 if strength == 10.0 and method == "kfc" else 0.0}
                runs.append(record({**point, "strengths": strengths}, test, **lost))
    return runs


def write(
    path: Path,
    tier2: Mapping[str, Any],
    tier3: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], bool] = lambda run: True,
    seeds: tuple[int, ...] = (0, 1),
    mild: bool = True,
    **settings: Any,
) -> Path:
    header = {
        "settings": SETTINGS | settings,
        "command": "permutations.py --a <b>",
        "versions": {"torch": "2"},
    }
    runs = []
    for seed in seeds:
        runs += references(seed, settings.get("update_examples") is not None)
        for tier, methods in ((2, tier2), (3, tier3 or {})):
            runs += chains(seed, seed == seeds[0], tier, methods, mild)
    lines = [header, *filter(keep, runs)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measures(path: Path, tier: int = 2) -> Measures:
    return Measures(load_models([path])[0], tier)


def cells(table: Any, first: str) -> list[str]:
    """A row, with the minus of a keyboard."""
    row = next(row for row in table.rows if row[0] == first)
    return [cell.replace(MINUS, "-") for cell in row]


def said(path: Path, tier: int = 2) -> str:
    return " ".join(verdict(measures(path, tier))).replace(MINUS, "-")


@pytest.fixture
def results(tmp_path) -> Path:
    return write(tmp_path / "cnn.jsonl", effects())


def test_changes_reductions_and_points_are_as_defined(results):
    own = measures(results)
    chain = "articles → patients"
    assert own.change["none"][chain, 0] == pytest.approx(-20)
    assert own.change["none"]["notes → articles", 1] == pytest.approx(-10)
    assert own.change["kfc"][chain, 0] == pytest.approx(-3)
    assert own.new["kfc"][chain, 1] == pytest.approx(29.5)
    assert own.reduction("kfc", chain) == pytest.approx(85)
    assert own.reduction("kfc", "notes → articles") == pytest.approx(70)
    kfc = own.summary("kfc")
    # None: 4 permutations at -20 and 2 at -10, so -50/3 on the mean.
    assert own.summary("none").change == pytest.approx(-50 / 3)
    assert kfc.reduction == pytest.approx(100 * (1 - 3 * 3 / 50))
    assert kfc.plain_mean == pytest.approx((4 * 85 + 2 * 70) / 6)
    assert (kfc.points, kfc.error) == (pytest.approx(-0.5), pytest.approx(0, abs=1e-9))
    assert (kfc.runs, kfc.expected, kfc.every_chain) == (12, 12, True)
    assert list(own.differences("lora", "kfc")) == pytest.approx([-6] * 12)


def test_standard_error_is_over_permutations_and_seeds(tmp_path):
    path = write(tmp_path / "r.jsonl", {"none": (-20, 0), "lora": (-9, 1)})
    header, *runs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for run in runs:
        tasks, method, seed = (run["point"][name] for name in ("tasks", "method", "seed"))
        if method == "lora" and seed == 1:
            run["test"][tasks[-1]] = NEW + 0.03
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *runs]), "utf-8")
    lora = measures(path).summary("lora")
    assert lora.points == pytest.approx(2)  # six of 1 and six of 3
    assert lora.error == pytest.approx((12 / 11 / 12) ** 0.5)


def test_later_tasks_are_held_against_what_an_update_learns(tmp_path):
    path = write(tmp_path / "r.jsonl", {"none": (-20, 0)}, {"none": (0, 0)}, update_examples=50)
    own = measures(path, tier=3)
    # articles as when alone, patients 0.5 against 0.4 on an update's examples: +25 %.
    assert own.change["none"]["articles → patients → notes", 0] == pytest.approx(12.5)
    assert own.new["individual"]["articles → patients → notes", 0] == pytest.approx(30)
    first = cells(baseline_table([own.model]), "patients")
    assert first == [
        "patients", "50.0 ± 0.0", "25.0 ± 0.0", "40.0 ± 0.0", "50.0 ± 0.0", "50.0 ± 0.0",
    ]  # fmt: skip


def test_strengths_are_those_that_development_splits_choose(results):
    own = measures(results)
    curve = own.curve("articles → notes", "kfc")
    assert list(zip(curve.strength, curve.chosen, strict=True)) == [
        ((1.0,), True),
        ((10.0,), False),
    ]
    assert list(curve.points) == [pytest.approx(-0.5), pytest.approx(0)]
    assert list(curve.change) == [pytest.approx(-3), pytest.approx(0)]
    table = strength_table(own)
    assert cells(table, "kfc")[1:] == ["1 ↓"] * 6
    assert cells(table, "ewc")[1:] == ["10"] * 6
    assert [row[0] for row in table.rows] == ["ewc", "kfc"]


def test_both_strengths_of_tier_3_are_told(tmp_path):
    path = write(tmp_path / "r.jsonl", effects(), {"none": (-20, 0), "kfc": {1.0: (-3, 0)}})
    assert cells(strength_table(measures(path, tier=3)), "kfc")[1:] == ["1, 1"] * 6


def test_tables_hold_the_numbers(results):
    own = measures(results)
    row = cells(tier_table(own), "kfc")
    assert row[:3] == ["kfc", "-3.0 (85)", "29.5"]
    assert row[-4:] == ["-3.0", "82", "80", "-0.50 ± 0.00"]
    assert cells(tier_table(own), "none")[-4:] == ["-16.7", "-", "-", "-"]
    assert cells(tier_table(own), "combined")[1] == "0.0 (100)"
    summary = summary_table([own])
    assert cells(summary, "kfc") == ["kfc", "51", "82", "80", "-0.50 ± 0.00", "yes"]
    assert cells(summary, "ewc") == ["ewc", "27", "52", "47", "+0.50 ± 0.00", "yes"]
    assert cells(summary, "lora")[1] == "-"


def test_files_of_one_model_are_merged(tmp_path, results):
    methods = effects()
    parts = [
        write(tmp_path / f"{name}.jsonl", {n: methods[n] for n in ("none", *names)})
        for name, names in (("a", ["ewc", "lora"]), ("b", ["kfc", "replay"]))
    ]
    (merged,) = load_models(parts)
    (whole,) = load_models([results])
    assert merged.records == whole.records
    assert merged.run_count == whole.run_count + 32  # 20 references and 12 of none, twice
    assert merged.notes == [
        "32 runs stand in several files and are taken from the first, all alike."
    ]
    other = write(tmp_path / "b.jsonl", {"none": (-10, 0), "kfc": methods["kfc"]})
    (merged,) = load_models([parts[0], other])
    assert "12 of them differ in their accuracies" in merged.notes[0]
    assert Measures(merged, 2).change["none"]["articles → notes", 0] == pytest.approx(-20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LearningArguments": {"epochs": 2.0}}, "differ in LearningArguments; report them apart"),
        ({"seeds": (1, 0)}, "on seed 0 and .* on seed 1"),
    ],
)
def test_files_that_do_not_go_together_are_refused(tmp_path, results, changes, message):
    other = write(tmp_path / "other.jsonl", {"none": (-20, 0)}, **changes)
    with pytest.raises(ConsolidationError, match=message):
        load_models([results, other])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not hold the runs"),
        ("{}\n", "does not hold the runs"),
        (json.dumps({"settings": SETTINGS}) + "\n", "holds no run"),
        ('{"settings": {}}\n{"point": {"seed": 0, "tasks": [], "method": "none"}}\n', "another"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, message):
    path = tmp_path / "r.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConsolidationError, match=message):
        load_models([path])


def test_models_stand_apart_and_the_cnn_is_first(tmp_path, results):
    ranker = {"ranker": "models/mini", "num_layers": 3}
    other = write(tmp_path / "e.jsonl", {"none": (-20, 0)}, RankerArguments=ranker)
    assert [model.label for model in load_models([other, results])] == ["CNN", "mini, 3 layers"]


def test_missing_runs_are_shown_and_counted(tmp_path):
    def keep(run):
        seed, tasks, method = (run["point"][name] for name in ("seed", "tasks", "method"))
        if method == "combined" and seed == 1:
            return tasks != TASKS
        if method == "lora":
            return tasks != ["articles", "patients"]
        return (seed, tasks, method) != (1, ["articles", "notes"], "ewc")

    own = measures(write(tmp_path / "r.jsonl", effects(), keep=keep))
    assert own.missing() == {"ewc": 1, "lora": 2}
    table = tier_table(own)
    assert cells(table, "lora")[1:3] == ["-", "-"]
    assert cells(table, "ewc")[3:5] == ["-8.0 (60)†", "30.5†"]
    # Against the same runs of none: 7 at -20 and 4 at -10.
    assert own.summary("ewc").reduction == pytest.approx(100 * (1 - 8 * 11 / 180))
    assert cells(summary_table([own]), "ewc")[2] == "51†"
    assert own.model.missing_baselines() == {"combined": 1}
    sentences = verdict(own)
    assert "`lora`" in sentences[-1] and "permutation are missing" in sentences[-1]
    assert not any("`lora`" in sentence for sentence in sentences[:-1])


def test_a_search_that_was_stopped_counts_as_missing(tmp_path):
    def keep(run):
        point = run["point"]
        return not (point["tasks"] == ["notes", "articles"] and point["strengths"] == [10.0])

    own = measures(write(tmp_path / "r.jsonl", effects(), keep=keep))
    assert own.missing() == {"ewc": 2, "kfc": 1}


def test_verdict_without_a_control_that_wins(results):
    text = said(results)
    assert "With no method the old tasks change by -16.7 %." in text
    assert "`replay` (old data) with 88 % at -0.90 ± 0.00 points keeps most." in text
    assert "Without old data it is `kfc` with 82 %" in text
    assert "KFC reduces forgetting by more than half: 82 % at -0.50 ± 0.00 points" in text
    assert "That is about twice as much as EWC (1.6 times; EWC: 52 %" in text
    assert "The goal of at least 75 % within 1 point is met by `replay`" in text
    assert "No control beats KFC (run: `lora`)." in text


def test_verdict_with_a_control_that_wins(tmp_path):
    path = write(tmp_path / "r.jsonl", effects(kfc=(-9, -0.5), lora=(-4, 0.2)))
    text = said(path)
    assert "KFC does not reduce forgetting by more than half: 46 %" in text
    assert "That is not more than EWC (0.9 times" in text
    assert "**A control beats KFC** (KFC: 46 % at -0.50 ± 0.00 points): `lora` (a control)" in text
    assert "with 76 % at +0.20 ± 0.00 points, the old tasks keep 5.0 % more" in text
    assert "A control meets it too: `lora` (a control) 76 %" in text


def test_verdict_where_controls_alone_or_none_meet_the_goal(tmp_path):
    methods = effects(kfc=(-9, -2), lora=(-4, 0.2))
    del methods["replay"]
    assert "is met by controls alone: `lora`" in said(write(tmp_path / "a.jsonl", methods))
    methods["lora"] = (-4, -1.5)
    text = said(write(tmp_path / "b.jsonl", methods))
    assert "is not met; the most is `ewc` with 52 %" in text
    methods["lora"] = (-9.5, 0)
    text = said(write(tmp_path / "c.jsonl", methods))
    assert "But KFC itself costs the new task more than 1 point" in text
    assert "the best is `lora` (a control)" in text


def test_an_encoder_has_a_goal_of_its_own(tmp_path):
    ranker = {"ranker": "mini", "num_layers": None}
    path = write(tmp_path / "e.jsonl", effects(), RankerArguments=ranker)
    assert "at least 60 % within 1 point is met by `replay` (old data) 88 %, `kfc` 82 %." in said(
        path
    )


def test_nothing_forgotten_means_no_reduction(tmp_path):
    path = write(tmp_path / "r.jsonl", {"none": (2, 0), "kfc": {1.0: (3, 0)}})
    assert "nothing is forgotten" in said(path)
    row = cells(tier_table(measures(path)), "kfc")
    assert row[1] == "3.0 (-)" and row[-3:-1] == ["-", "-"]


def test_methods_are_grouped_and_described():
    names = ["lora", "replay", "scores", "average+kfc", "rehearsal:0.05+kfc", "replay:0.05", "l2"]
    assert in_order([*names, "none", "kfc:0.0", "lower_lr"]) == [
        "none", "l2", "kfc:0.0", "lower_lr", "replay:0.05", "replay", "rehearsal:0.05+kfc",
        "scores", "average+kfc", "lora",
    ]  # fmt: skip
    assert group_of("average") == "controls" and group_of("average+kfc") == "averages"
    assert group_of("text_probes+temperature:2") == "probes"
    assert [n for n in names if is_control(n)] == ["lora", "replay:0.05", "l2"]
    assert description("lora").endswith("its rank: 8")
    assert description("kfc:0.5").endswith("its damping: 0.5")
    assert "damping" not in description("kfc")


def test_numbers_as_text():
    assert [signed(v, 0) for v in (float("nan"), -0.2, -3.4, 3.6)] == ["-", "0", f"{MINUS}3", "4"]
    assert with_error(0.5, 0.25) == "+0.50 ± 0.25"
    assert with_error(-1.04, float("nan")) == f"{MINUS}1.04"
    assert with_error(0.0, 0.0) == "0.00 ± 0.00"


class Page(HTMLParser):
    """Keeps what is open, and what the page leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.urls += [values[name] for name in ("href", "src") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


STREAM: list[dict[str, Any]] = [
    {"point": {"tasks": tasks, "method": method}, "test": {"1": 0.5, "2": 0.4, "3": 0.3}}
    for tasks, method in (
        (["1"], "individual"),
        *((["1", "2", "3"][:count], name) for count in (2, 3) for name in ("combined", "none")),
    )
]


def write_stream(path: Path) -> Path:
    lines = [{"settings": {"task": "articles", "periods": 3, "base_periods": 1}}]
    lines += [run | {"point": run["point"] | {"seed": 0}} for run in STREAM]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """A report of all that there may be."""
    folder = tmp_path_factory.mktemp("report")
    tier3 = {"none": (-20, 0), "kfc": {1.0: (-3, 0)}}

    def keep(run):
        return run["point"]["method"] != "lora" or run["point"]["tasks"][0] != "notes"

    cnn = write(folder / "cnn.jsonl", effects() | {"rehearsal+kfc": {1.0: (-1, 0)}}, tier3, keep)
    ranker = {"ranker": "mini", "num_layers": None}
    encoder = write(folder / "e.jsonl", {"none": (-20, 0)}, RankerArguments=ranker)
    toys = folder / "toys"
    toys.mkdir()
    (toys / "cnn_fisher.png").write_bytes(b"\x89PNG toy")
    stream, out = write_stream(folder / "s.jsonl"), folder / "out" / "report"
    run_report(ReportArguments([str(cnn), str(encoder)], str(stream), str(toys), str(out)))
    return out


def test_html_is_well_formed_and_needs_nothing_else(report):
    text = (report / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    outside = [u for u in page.urls if not u.startswith(("#", "data:image/"))]
    assert set(outside) == {"https://arxiv.org/abs/2111.06012"}
    assert {u[1:] for u in page.urls if u.startswith("#")} <= set(page.ids)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert "permutations.py --a &lt;b&gt;" in text
    assert text.index('class="verdict"') < text.index("<table>")


def test_markdown_tables_have_equal_rows(report):
    text = (report / "report.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    titles = [number for number in range(1, 8) if f"**Table {number}" in text]
    assert titles == [1, 2, 3, 4, 5, 6, 7] and len(tables) == 9  # 6 twice, and the settings
    for table in tables:
        assert len({len(line.split("|")) for line in table.splitlines()}) == 1
    assert text.splitlines()[2].startswith("**CNN, tier 2**")


def test_report_tells_what_was_run(report):
    text = (report / "report.md").read_text("utf-8")
    for expected in (
        "`rehearsal+kfc`: data rehearsal",
        "could not be consulted",
        "3DNotes",
        "seeds 0, 1",
        "permutations.py --a <b>",
        "torch 2",
        "| epochs | 1.0 | 1.0 |",
        "Not run at tier 3: mini.",
        "| frozen | - |",
        "'frozen' is the base model",
        "**Missing runs: 4** (lora 4). A value of fewer",
    ):
        assert expected in text
    runs = len(load_models([report.parent.parent / "cnn.jsonl"])[0].records)
    assert f"{runs} runs, {runs / 2:.1f} hours" in text


def test_pictures_are_drawn_and_shown(report):
    text = (report / "report.md").read_text("utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert shown == [
        "cnn-tier2-priors.png",
        "cnn-tier2-combinations.png",
        "cnn-tier2-summary.png",
        "cnn-tier3-summary.png",
        "mini-tier2-summary.png",
        "toy-cnn_fisher.png",
        "s_last_update.png",
        "s_each_update.png",
    ]
    for name in shown:
        assert (report / name).read_bytes().startswith(b"\x89PNG")
    svg = (report / "cnn-tier2-summary.svg").read_text("utf-8")
    assert "<dc:date>" not in svg


def test_what_is_not_there_is_told(tmp_path, results):
    output = str(tmp_path / "out")
    for given in ({"toys": "nowhere"}, {"stream": "nowhere.jsonl"}):
        with pytest.raises(ConsolidationError, match=r"nowhere.* does not exist"):
            run_report(ReportArguments([str(results)], output_dir=output, **given))
    assert not (tmp_path / "out").exists()


ROOT = Path(__file__).parents[2]
COMMITTED = {
    "permutations": ("cnn-priors", "cnn-others", "minilm-kfc", "minilm-rivals"),
    "stream": ("medmentions",),
}


def test_the_committed_results_give_the_committed_report(tmp_path, monkeypatch):
    """Whatever is changed in the engine or the report, no number of these is."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda _, path, **__: path.touch())  # for time
    permutations, (stream,) = (
        [str(ROOT / "benchmarks" / folder / f"{name}.jsonl") for name in names]
        for folder, names in COMMITTED.items()
    )
    toys = str(ROOT / "benchmarks" / "toys")
    run_report(ReportArguments(permutations, stream, toys, str(tmp_path)))
    committed = ROOT / "docs" / "report"
    assert (tmp_path / "report.md").read_text("utf-8") == (committed / "report.md").read_text(
        "utf-8"
    )
    kept = {path.name for path in committed.iterdir()} | {"report.html"}
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "forgetting").glob("*.jsonl")), ids=lambda p: p.stem
)
def test_the_committed_grids_give_their_committed_tables(path):
    assert grid_table(path) + "\n" == path.with_suffix(".md").read_text("utf-8")
