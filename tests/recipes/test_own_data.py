"""The guide to one's own data does what it says."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from recipe_runs import ROOT, Recipes

from hf_kfc import ConsolidationPrior
from hf_kfc.hub import walk_tiers

GUIDE = ROOT / "docs" / "guides" / "own-data.md"
_RECIPE = re.compile(r"^(?:python|accelerate launch) recipes/(\w+)\.py(.*)$", re.MULTILINE)


def test_the_guide_from_raw_files_to_a_second_task(
    hub: HubServer, recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipes run in this process: that they can be launched is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    out = ""
    for block in re.findall(r"```bash\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL):
        commands = _RECIPE.findall(block.replace("\\\n", " "))
        if not commands:
            subprocess.run(["bash", "-euo", "pipefail", "-c", block], check=True)
        for recipe, arguments in commands:
            result = recipes.call(recipe, *shlex.split(arguments))
            assert result.status == 0, result.err
            out += result.out
    assert "| **kept as examples** | 10 | 2 | 6 |" in out  # of the letters
    assert "| **kept as examples** | 6 | 2 | 2 |" in out  # of the forum
    assert out.count("saved in runs/letters") == 1  # when it is pushed it is not learnt again

    assert "| letters before |" in out
    second = tmp_path / "runs" / "forum"
    found = json.loads((second / "results.json").read_text("utf-8"))
    assert (found["old_task"], found["new_task"]) == ("letters", "forum")
    assert [own["method"] for own in found["outcomes"]] == ["none", "kfc+probes"]
    assert ConsolidationPrior.from_pretrained(second / "prior").task == "forum"
    tiers = [tier.model.partition("@")[0] for tier in walk_tiers("you/forum")]
    assert tiers == ["you/forum", "you/letters"]
    head = hub.repositories["model", "you/forum"].resolve("main")
    card = ModelCard(head.files["README.md"].content.decode())
    assert "# Candidate ranker: letters, forum" in card.text
    assert card.data.model_name == "forum"
    assert "prepared/" not in card.text
