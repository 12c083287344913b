import json
import math
from types import SimpleNamespace

import pytest
from made_up_answers import draw

from hf_kfc.ranking import (
    Comparison,
    Outcome,
    find_regressions,
    is_finished,
    method_name,
)

PLAIN = Outcome("none", [], None, 0.5, 0.70)


def kfc(strength: float, old: float | None, new: float) -> Outcome:
    return Outcome("kfc", [strength], 0.1, old, new)


@pytest.fixture
def comparison() -> Comparison:
    outcomes = [
        Outcome("none", [], None, 0.4, 0.625),
        Outcome("kfc", [0.5], 0.1, 0.6, 0.6125),
        Outcome("ewc + kfc", [1234.56, 2.0], 0.0, 0.9, 0.5),
    ]
    return Comparison("articles", "patients", 0.8, outcomes, {"seed": 3})


def cells(table: str) -> list[list[str]]:
    header, rule, *rows = table.splitlines()
    assert header.count("|") == rule.count("|") == rows[0].count("|")
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_table_tells_change_and_reduction_of_every_method(comparison):
    assert "articles before" in comparison.table().splitlines()[0]
    assert cells(comparison.table()) == [
        ["none", "-", "-", "80.0%", "40.0%", "-50.0%", "-", "62.5%"],
        ["kfc", "0.5", "0.1", "80.0%", "60.0%", "-25.0%", "50%", "61.3%"],
        # It gains on the old task: more than all forgetting is prevented.
        ["ewc + kfc", "1.23e+03, 2", "0", "80.0%", "90.0%", "+12.5%", "125%", "50.0%"],
    ]


def test_to_dict_has_everything_needed_to_repeat_it(comparison, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recipes/tier2.py", "--seed", "3", "--data_dir", "my data"])
    values = comparison.to_dict()
    assert values["command"] == "recipes/tier2.py --seed 3 --data_dir 'my data'"
    assert set(values["versions"]) == {
        *("python", "hf_kfc", "torch", "transformers", "datasets", "accelerate")
    }
    assert all(values["versions"].values())
    assert (values["old_task"], values["new_task"], values["old_before"]) == (
        *("articles", "patients", 0.8),
    )
    assert values["settings"] == {"seed": 3}
    assert values["outcomes"][0] == {
        "method": "none",
        "strengths": [],
        "damping": None,
        "old": 0.4,
        "new": 0.625,
        "old_by_task": {},
        "forgotten": None,
        "change": -50.0,
        "cf_reduction": None,
    }
    assert values["outcomes"][2]["strengths"] == [1234.56, 2.0]
    assert values["outcomes"][1]["change"] == pytest.approx(-25)
    assert values["outcomes"][1]["cf_reduction"] == pytest.approx(0.5)


def test_save_writes_json_and_table(comparison, tmp_path):
    comparison.settings = {"name": "λ"}
    comparison.save(tmp_path)
    written = ["forgetting.png", "results.json", "results.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    text = (tmp_path / "results.json").read_text("utf-8")
    assert "λ" in text
    assert json.loads(text) == comparison.to_dict()
    assert (tmp_path / "results.md").read_text("utf-8") == comparison.table() + "\n"


def test_changes_of_each_old_task_are_counted_and_have_a_page(comparison, tmp_path):
    found = find_regressions(draw(1), draw(2))
    comparison.regressions = {"articles": found, "a/b": found}
    comparison.save(tmp_path)
    pages = [path.read_text("utf-8") for path in sorted(tmp_path.glob("*.html"))]
    assert ["a/b, after learning patients" in page for page in pages] == [False, True]
    assert comparison.to_dict()["regressions"]["a/b"] == {
        "lost": len(found.lost),
        "won": len(found.won),
        "p_value": found.p_value,
    }
    told = (tmp_path / "results.md").read_text("utf-8")
    assert told.startswith(comparison.table() + "\n\narticles: 200 mentions in 20 documents: ")


def test_a_folder_is_finished_for_the_very_settings_and_versions(comparison, tmp_path, monkeypatch):
    assert not is_finished(tmp_path, comparison.settings)
    comparison.settings = {"tier": {"priors": ("a", "b")}, "seed": 3}
    comparison.save(tmp_path)
    assert is_finished(tmp_path, comparison.settings)
    assert not is_finished(tmp_path, comparison.settings | {"seed": 4})
    monkeypatch.setattr("hf_kfc.ranking.comparison.versions", lambda: {"torch": "1"})
    assert not is_finished(tmp_path, comparison.settings)


def test_measured_are_the_old_tasks_their_mean_and_the_new_one():
    accuracies = {"old a": 0.5, "old b": 0.7, "new": 0.25}
    trainer = SimpleNamespace(
        evaluate=lambda examples: {"eval_accuracy": accuracies[examples]},
        strengths=[2.0],
        consolidation=SimpleNamespace(damping=0.3),
    )
    outcome = Outcome.of("kfc", trainer, "new", {"a": "old a", "b": "old b"})
    assert outcome == Outcome("kfc", [2.0], 0.3, 0.6, 0.25, {"a": 0.5, "b": 0.7})
    trainer.strengths = []
    assert Outcome.of("none", trainer, "new", {}) == Outcome("none", [], None, None, 0.25)
    del trainer.strengths, trainer.consolidation  # any other Trainer
    assert Outcome.of("none", trainer, "new", {}) == Outcome("none", [], None, None, 0.25)


def test_methods_are_named_by_the_curvatures_of_their_priors():
    kinds = ("kronecker", "diagonal", "kronecker", "identity", "kronecker_eigen")
    priors = [
        SimpleNamespace(provenance=SimpleNamespace(curvature=kind), probes=None) for kind in kinds
    ]
    assert method_name(priors) == "kfc + ewc + l2 + ekfac"
    assert method_name(priors[2:3]) == "kfc"
    priors[2].probes = "of any kind"
    assert method_name(priors[2:3]) == "kfc+probes"


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    ("before", "old"),
    [(None, None), (0.5, None), (None, 0.5), (0.0, 0.5), (0.0, 0.0)],
    ids=str,
)
def test_without_something_to_forget_there_is_no_change(before, old, tmp_path):
    outcomes = [Outcome("none", [], None, old, 0.5), Outcome("kfc", [1.0], 0.1, old, 0.25)]
    comparison = Comparison("a", "b", before, outcomes)
    for outcome in outcomes:
        assert math.isnan(comparison.change(outcome))
        assert math.isnan(comparison.reduction(outcome))
    known = [] if before is None else [f"{before:.1%}"]
    known += [] if old is None else [f"{old:.1%}"]
    assert cells(comparison.table()) == [
        ["none", "-", "-", *known, "50.0%"],
        ["kfc", "1", "0.1", *known, "25.0%"],
    ]
    comparison.save(tmp_path)
    text = (tmp_path / "results.json").read_text("utf-8")
    read = json.loads(text, parse_constant=refuse_constant)
    assert [(o["change"], o["cf_reduction"]) for o in read["outcomes"]] == [(None, None)] * 2


@pytest.mark.parametrize("plain", [None, 0.5, 0.6], ids=["no none", "kept", "gained"])
def test_where_no_method_forgets_nothing_there_is_no_reduction(plain):
    outcomes = [] if plain is None else [Outcome("none", [], None, plain, 0.7)]
    comparison = Comparison("a", "b", 0.5, [*outcomes, kfc(1.0, 0.4, 0.7)])
    assert math.isnan(comparison.reduction(comparison.outcomes[-1]))
    assert comparison.change(comparison.outcomes[-1]) == pytest.approx(-20)
