"""Tiers by way of the Hub: every one in another process, with an empty cache and no older data."""

import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from recipe_runs import DATA, SMALL_CNN, TINY, Recipes, Result

from hf_kfc.hub import walk_tiers

# All tokens are kept, so that the published priors are the same as those in folders.
ALIKE = (*TINY, "--min_examples", "0")


def outcomes(directory: Path) -> list[dict]:
    return json.loads((directory / "results.json").read_text("utf-8"))["outcomes"]


def succeed(result: Result) -> Result:
    assert result.status == 0, result.err
    return result


def overwrite(name: str) -> None:
    """Publish something that no model is, as whoever else may write to a repository can."""
    operations = [CommitOperationAdd(path, b"{}") for path in ("config.json", "README.md")]
    HfApi().create_commit(name, operations, commit_message="in between")


def test_three_tiers_by_the_hub_are_as_accurate_as_by_folders(
    hub: HubServer, recipes: Recipes, tmp_path: Path
) -> None:
    local, away = tmp_path / "local", tmp_path / "away"
    first, second, third = (local / name for name in ("tier1", "tier2", "tier3"))
    articles, patients = DATA / "articles", DATA / "patients"
    push = ("--push_to_hub", "org/tier1")
    succeed(recipes.call("tier1", *ALIKE, *SMALL_CNN, *push, "--output_dir", first))

    sources = ("--model", "org/tier1", "--priors", "org/tier1-kfc")
    old = ("--old_datasets", articles)
    published = recipes.start(
        "tier2",
        *(*ALIKE, *sources, *old, "--push_to_hub", "org/tier2", "--output_dir", away / "tier2"),
        environment=hub.environment(tmp_path / "cache2"),
    )
    assert "published as org/tier2, its prior as org/tier2-kfc@" in succeed(published).out
    sources = ("--model", str(first), "--priors", str(first / "prior"))
    succeed(recipes.call("tier2", *ALIKE, *sources, *old, "--output_dir", second))
    assert outcomes(away / "tier2") == outcomes(second)

    second_tier = next(walk_tiers("org/tier2"))
    # What comes after the first look at the model is seen by none of the processes.
    readme = second_tier.model.replace("@", "/resolve/") + "/README.md"
    hub.before("HEAD", readme, lambda: overwrite("org/tier2"))
    old = ("--old_datasets", articles, patients)
    published = recipes.launch_two(
        "tier3",
        *(*ALIKE, "--model", "org/tier2", *old),
        *("--push_to_hub", "org/tier3", "--output_dir", away / "tier3"),
        environment=hub.environment(tmp_path / "cache3"),
    )
    assert succeed(published).out.count("published as org/tier3") == 1
    assert HfApi().list_repo_commits("org/tier2")[0].title == "in between"
    sources = ("--model", second, "--priors", first / "prior", second / "prior")
    succeed(recipes.launch_two("tier3", *ALIKE, *sources, *old, "--output_dir", third))
    assert outcomes(away / "tier3") == outcomes(third)
    assert outcomes(third)[-1]["strengths"] == [0.5, 0.5]

    tiers = list(walk_tiers("org/tier3"))
    assert [tier.model.split("@")[0] for tier in tiers] == ["org/tier3", "org/tier2", "org/tier1"]
    assert tiers[1] == second_tier
    assert recipes.leftovers() == []


@pytest.mark.parametrize("asked", ["--cpu --num_processes 2", "--num_processes 2"])
def test_fewer_processes_than_asked_for_are_refused(asked, recipes, tmp_path):
    result = recipes.start(
        "tier1",
        *(*TINY, "--output_dir", tmp_path / "tier1"),
        launcher=f"accelerate.commands.launch --quiet {asked}",
    )
    assert result.status == 1
    assert result.errors == [
        "error: several processes were asked for and one was started; on GPUs and CPUs alike, "
        "launch with --multi_gpu --num_processes N --num_machines 1"
    ]
    assert list(tmp_path.iterdir()) == []


def test_all_of_it_offline_once_it_is_cached(hub, recipes, tmp_path, monkeypatch):
    succeed(
        recipes.call(
            *("tier1", *TINY, *SMALL_CNN, "--push_to_hub", "org/tier1"),
            *("--output_dir", tmp_path / "tier1"),
        )
    )
    shutil.rmtree(tmp_path / "tier1")
    accuracies = []
    for name in ("online", "offline"):
        succeed(
            recipes.call(*("tier2", *TINY, "--model", "org/tier1", "--output_dir", tmp_path / name))
        )
        accuracies.append(outcomes(tmp_path / name))
        hub.close()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert accuracies[0] == accuracies[1]
    assert accuracies[0][-1]["method"] == "kfc+probes"
