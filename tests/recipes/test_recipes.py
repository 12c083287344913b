import ast
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from recipe_runs import DATA, ROOT, SMALL_CNN, TINY, content
from safetensors.torch import load_file
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from hf_kfc import ConsolidationPrior, ranking
from hf_kfc.curvature import passes
from hf_kfc.curvature.checkpoint import CurvatureCheckpoint
from hf_kfc.errors import CurvatureError
from hf_kfc.ranking import Comparison

# No import of the CNN: hf_kfc has registered it.
TIER_FILES = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("results.json", "results.md"),
    *("prior", "prior/README.md", "prior/config.json", "prior/prior.safetensors"),
}

MEASURED = {"forgetting.png", "regressions.html"}  # where the old data is at hand


@pytest.fixture(scope="module")
def tier2(recipes, tier1, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("second") / "tier2"
    result = recipes.launch(
        "tier2",
        *TINY,
        *("--model", tier1, "--priors", tier1 / "prior", "--old_datasets", DATA / "articles"),
        *("--output_dir", directory),
    )
    assert result.status == 0, result.err
    assert f"saved in {directory}" in result.out
    assert (directory / "results.md").read_text("utf-8") in result.out
    return directory


def results(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text("utf-8"))


@pytest.mark.parametrize("tier", ["tier1", "tier2"])
def test_folder_holds_everything_and_nothing_is_left_beside_it(tier, recipes, request):
    directory = request.getfixturevalue(tier)
    expected = TIER_FILES | (MEASURED if tier == "tier2" else set())
    assert set(content(directory)) == expected
    assert list(directory.parent.iterdir()) == [directory]
    assert recipes.leftovers() == []


@pytest.mark.parametrize(("tier", "task"), [("tier1", "articles"), ("tier2", "patients")])
def test_model_and_its_prior_load_and_fit(tier, task, request):
    directory = request.getfixturevalue(tier)
    model = AutoModelForMultipleChoice.from_pretrained(directory)
    assert type(model).__name__ == "CnnForMultipleChoice"
    assert len(AutoTokenizer.from_pretrained(directory)) == model.config.vocab_size == 500
    prior = ConsolidationPrior.from_pretrained(directory / "prior")
    prior.check(model)
    assert (prior.task, prior.provenance.num_examples) == (task, 64)
    accuracy = results(directory)["outcomes"][-1]["new"]
    assert prior.provenance.anchor_metrics == {"accuracy": accuracy}
    parameters = dict(model.named_parameters())
    assert prior.anchor.keys() == parameters.keys()
    for name, anchor in prior.anchor.items():
        torch.testing.assert_close(anchor, parameters[name].detach(), rtol=0, atol=0)


def test_results_of_tier_1_are_complete(tier1):
    found = results(tier1)
    (outcome,) = found["outcomes"]
    assert 0 < outcome["new"] <= 1
    assert (found["old_task"], found["new_task"], found["old_before"]) == ("", "articles", None)
    settings = {"tier", "data", "learning", "curvature", "probes", "processes"}
    assert found["settings"].keys() == settings
    assert found["settings"]["tier"]["hidden_size"] == 8
    assert found["settings"]["data"]["dataset"] == "recipes/data/articles"
    assert found["command"].startswith("recipes/tier1.py --max_train_examples 64 ")
    assert found["versions"].keys() >= {"hf_kfc", "torch", "python"}


def test_results_of_tier_2_are_complete(tier1, tier2):
    found = results(tier2)
    assert (found["old_task"], found["new_task"]) == ("articles", "patients")
    # The model, loaded, is as good as when it was saved.
    assert found["old_before"] == results(tier1)["outcomes"][0]["new"]
    plain, kfc = found["outcomes"]
    assert [(o["method"], o["strengths"], o["damping"]) for o in (plain, kfc)] == [
        ("none", [], None),
        ("kfc+probes", [0.5], 0.1),  # N_old / (2 N_new)
    ]
    for outcome in (plain, kfc):
        assert 0 <= outcome["old"] <= 1
        assert 0 <= outcome["new"] <= 1
        expected = 100 * (outcome["old"] / found["old_before"] - 1)
        assert outcome["change"] == pytest.approx(expected)
    assert found["settings"]["tier"]["priors"] == [str(tier1 / "prior")]
    assert (tier2 / "forgetting.png").read_bytes().startswith(b"\x89PNG")


def test_what_tier_2_changed_is_told_and_shown(tier2):
    found = results(tier2)
    (changed,) = found["regressions"].values()
    share = 32 * (found["old_before"] - found["outcomes"][-1]["old"])
    assert changed["lost"] - changed["won"] == pytest.approx(share)
    sentence = f"{changed['lost']} were right and now are wrong, {changed['won']} the other way"
    assert sentence in (tier2 / "results.md").read_text("utf-8")
    page = (tier2 / "regressions.html").read_text("utf-8")
    assert "articles, after learning patients: what changed" in page
    assert page.count("<mark>") == changed["lost"] + changed["won"] > 0


def test_the_penalty_keeps_the_model_nearer_to_the_prior(recipes, tier1, tmp_path):
    """Without it the recipe's second line would be its first."""
    distances = []
    for strength in ("0", "1000"):
        result = recipes.call(
            "tier2",
            *(*TINY, "--num_train_epochs", "5"),
            *("--model", tier1, "--priors", tier1 / "prior", "--strengths", strength),
            *("--output_dir", tmp_path / strength),
        )
        assert result.status == 0, result.err
        moved = load_file(tmp_path / strength / "model.safetensors")
        anchor = load_file(tier1 / "model.safetensors")
        distances.append(sum(float((moved[n] - anchor[n]).square().sum()) for n in anchor))
        assert not (tmp_path / strength / "forgetting.png").exists()  # no old task was given
        assert results(tmp_path / strength)["old_before"] is None
    assert 0 < distances[1] < 0.5 * distances[0]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    files = (directory / "model.safetensors", directory / "prior" / "prior.safetensors")
    return {f"{file.name}/{n}": t for file in files for n, t in load_file(file).items()}


def test_an_estimate_that_was_stopped_goes_on(recipes, tmp_path, monkeypatch):
    """Here between its two passes; the model is learnt again, to the same parameters."""

    def stop(*_):
        raise CurvatureError("stopped")

    arguments = ("tier1", *TINY, *SMALL_CNN, "--curvature", "kronecker_eigen", "--output_dir")
    with monkeypatch.context() as patch:
        patch.setattr(passes, "rotate_accumulators", stop)
        assert recipes.call(*arguments, tmp_path / "tier1").errors == ["error: stopped"]
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(".tier1.curvature-")
    restore, restored = CurvatureCheckpoint.restore, []
    monkeypatch.setattr(
        CurvatureCheckpoint,
        "restore",
        lambda self, *of_pass: restored.append(restore(self, *of_pass)) or restored[-1],
    )
    (tmp_path / ".tier1.curvature-of-other-arguments").mkdir()
    assert recipes.call(*arguments, tmp_path / "tier1").status == 0
    assert restored == [64, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / "tier1"]


def test_the_same_seed_gives_the_same_files_in_another_process(recipes, tier1, tmp_path):
    """The seed of Python's hashes differs between processes, for example."""
    for seed in ("0", "1"):
        assert recipes.call(
            "tier1", *TINY, *SMALL_CNN, "--output_dir", tmp_path / seed, "--seed", seed
        )
    same, other = content(tmp_path / "0"), content(tmp_path / "1")
    launched = content(tier1)
    for name in ("model.safetensors", "tokenizer.json", "prior/prior.safetensors", "results.md"):
        assert same[name] == launched[name]
        assert name == "results.md" or other[name] != launched[name]
    assert results(tmp_path / "0")["outcomes"] == results(tier1)["outcomes"]


def test_two_priors_of_different_kinds_with_a_strength_each(recipes, tier1, tier2, tmp_path):
    ewc = tmp_path / "ewc"
    result = recipes.call(
        "tier1", *TINY, "--model", tier1, "--curvature", "diagonal", "--output_dir", ewc
    )
    assert result.status == 0, result.err
    result = recipes.call(
        "tier3",
        *(*TINY, "--old_datasets", DATA / "patients", DATA / "articles"),
        *("--model", tier2, "--priors", tier2 / "prior", ewc / "prior", "--strengths", "1", "3"),
        *("--output_dir", tmp_path / "tier3"),
    )
    assert result.status == 0, result.err
    found = results(tmp_path / "tier3")
    assert (found["old_task"], found["new_task"]) == ("patients + articles", "notes")
    for outcome in found["outcomes"]:
        assert outcome["old_by_task"].keys() == {"patients", "articles"}
        assert outcome["old"] == sum(outcome["old_by_task"].values()) / 2
    remembered = [(own["task"], own["accuracy"], own["source"]) for own in found["remembered"]]
    assert remembered == [
        ("patients", results(tier2)["outcomes"][-1]["new"], None),
        ("articles", results(ewc)["outcomes"][-1]["new"], None),
    ]
    assert [(o["method"], o["strengths"]) for o in found["outcomes"]] == [
        ("none", []),
        ("kfc + ewc+probes", [1.0, 3.0]),
    ]


def test_without_priors_tier_1_is_done_and_all_methods_compared(recipes, tmp_path):
    result = recipes.call(
        "tier2",
        *TINY,
        *("--strengths", "0.25", "--output_dir", tmp_path / "tier2"),
    )
    assert result.status == 0, result.err
    found = results(tmp_path / "tier2")
    assert (found["old_task"], found["new_task"]) == ("articles", "patients")
    strengths = {"none": [], "ewc": [0.25], "kfc": [0.25], "probes": [], "kfc+probes": [0.25]}
    assert {o["method"]: o["strengths"] for o in found["outcomes"]} == strengths
    forgotten = {o["method"]: o["forgotten"] for o in found["outcomes"]}
    assert all(value > 0 for value in forgotten.values())
    assert forgotten["probes"] < forgotten["none"]
    assert found["settings"]["penalty"]["probe_temperature"] == 2
    assert ConsolidationPrior.from_pretrained(tmp_path / "tier2" / "prior").probes is not None
    assert set(content(tmp_path / "tier2")) == TIER_FILES | MEASURED


def test_an_older_result_is_replaced_only_by_a_whole_one(recipes, tier1, tmp_path, monkeypatch):
    output = tmp_path / "tier2"
    shutil.copytree(tier1, output)
    before = content(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    arguments = ("--output_dir", output, "--methods", "kfc")
    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "save_figure", fail)  # the last thing to be written
        with pytest.raises(OSError, match="disk full"):
            recipes.call("tier2", *TINY, *arguments)
    assert content(tmp_path) == before
    assert recipes.call("tier2", *TINY, *arguments).status == 0
    assert set(content(tmp_path)) == {"tier2"} | {f"tier2/{name}" for name in TIER_FILES | MEASURED}
    assert results(output)["new_task"] == "patients"


def test_two_processes_learn_and_remember_what_one_does(recipes, tier1, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(tier1, start)
    config = json.loads((start / "config.json").read_text())
    # Dropout differs between processes, as it should.
    (start / "config.json").write_text(json.dumps(config | {"dropout": 0.0}))
    dataset = ("--dataset", DATA / "patients")
    arguments = (*dataset, *TINY, "--model", start, "--output_dir")
    size = "--per_device_train_batch_size"
    one = recipes.call("tier1", *arguments, tmp_path / "one", size, "32")
    assert one.status == 0, one.err
    two = recipes.launch_two("tier1", *arguments, tmp_path / "two", size, "16")
    assert two.status == 0, two.err
    assert two.out.count(f"saved in {tmp_path / 'two'}") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "start", "two"]
    assert set(content(tmp_path / "two")) == TIER_FILES
    assert recipes.leftovers() == []
    expected, found, before = (tensors(tmp_path / name) for name in ("one", "two", "start"))
    assert found.keys() == expected.keys()
    # A bias that shifts all candidates alike has no gradient but rounding errors, which Adam blows
    # up; the classifier's input moves with the one below it.
    for name in (name for name in expected if not name.endswith(("bias", "classifier/A"))):
        # What the model says of probes and reads in its upper layers is after those below.
        atol = 1e-2 if "probes" in name or name.endswith("dense/A") else 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=atol, msg=name)
        if "curvature" not in name and "probes" not in name:
            start_name = f"model.safetensors/{name.rpartition('/')[2]}"
            assert (found[name] - before[start_name]).abs().max() > 1e-2
    assert results(tmp_path / "two")["outcomes"] == results(tmp_path / "one")["outcomes"]


def test_without_probes_a_prior_has_none_and_nothing_is_measured(recipes, tmp_path):
    arguments = (*TINY, "--methods", "kfc", "--max_probes", "0", "--output_dir", tmp_path / "tier2")
    result = recipes.call("tier2", *arguments)
    assert result.status == 0, result.err
    found = results(tmp_path / "tier2")
    assert [outcome["forgotten"] for outcome in found["outcomes"]] == [None, None]
    assert ConsolidationPrior.from_pretrained(tmp_path / "tier2" / "prior").probes is None


def test_names_of_ones_own_stand_in_results_prior_and_table(recipes, tier1, tmp_path):
    result = recipes.call(
        "tier2",
        *(*TINY, "--model", tier1, "--priors", tier1 / "prior", "--output_dir", tmp_path / "tier2"),
        *("--name", "clinic", "--old_datasets", DATA / "articles", "--old_names", "library"),
    )
    assert result.status == 0, result.err
    found = results(tmp_path / "tier2")
    assert (found["old_task"], found["new_task"]) == ("library", "clinic")
    assert found["outcomes"][-1]["old_by_task"].keys() == {"library"}
    header = (tmp_path / "tier2" / "results.md").read_text("utf-8").splitlines()[0]
    assert "| library before |" in header
    assert header.endswith("| clinic |")
    assert ConsolidationPrior.from_pretrained(tmp_path / "tier2" / "prior").task == "clinic"


RECIPES = [*sorted((ROOT / "recipes").glob("tier*.py")), ROOT / "recipes" / "prepare.py"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_short_and_stands_on_the_public_api_alone(recipe):
    text = recipe.read_text("utf-8")
    assert len(text.splitlines()) <= 200
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(name.name.startswith(("laboratory", "hf_kfc")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module.partition(".")[0] != "laboratory"
            if node.module.startswith("hf_kfc"):
                public = importlib.import_module(node.module).__all__
                modules = {"ranking"} if node.module == "hf_kfc" else set()
                assert {name.name for name in node.names} <= set(public) | modules
        elif isinstance(node, ast.Attribute):
            assert not (node.attr.startswith("_") or ast.unparse(node) == "sys.path")
            if isinstance(node.value, ast.Name) and node.value.id == "ranking":
                assert node.attr in ranking.__all__
