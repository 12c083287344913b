"""The three commands of the guide to linking, as they stand, on a made-up corpus."""

import gzip
import json
import random
import re
import shlex
from pathlib import Path

from pubtator_text import block
from recipes.recipe_runs import Recipes

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "linking.md"
ILLS = ["pain", "swelling", "cancer", "wound"]
PARTS = ["head", "heart", "knee", "lung", "skin"]


def write_corpus(folder: Path) -> None:
    """Write documents of two mentions each, and the names of what they mention."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for number, split in enumerate(["train", "dev", "test"]):
        documents = []
        for i in range({"train": 40}.get(split, 10)):
            first, second = draw.sample([(p, k) for p in range(5) for k in range(4)], 2)
            said = [f"{PARTS[p]} {ILLS[k]}" for p, k in (first, second)]
            ids = [f"D00{p}{k}" for p, k in (first, second)]
            marks = [(said[0], ids[0], "Disease"), (said[1], ids[1], "Sign")]
            documents.append(block(f"{number}{i}", f"On {said[0]}.", f"Then {said[1]}.", *marks))
        path = folder / f"{split}_corpus.pubtator.txt.gz"
        path.write_bytes(gzip.compress("".join(documents).encode()))
    names = [
        f"D00{p}{k}\t{i} of the {x}\n" for p, x in enumerate(PARTS) for k, i in enumerate(ILLS)
    ]
    (folder / "mesh_names.tsv.gz").write_bytes(gzip.compress("".join(names).encode()))


def test_from_a_raw_file_to_a_scored_page(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "data" / "bc5cdr")
    text = GUIDE.read_text("utf-8").partition("<!-- three commands -->")[2]
    commands = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].replace("\\\n", " ").splitlines()
    assert len(commands) == 3
    (tmp_path / "temporary").mkdir()
    recipes = Recipes(tmp_path / "cache", tmp_path / "temporary")
    recipe = shlex.split(commands[0])
    assert recipe[:3] == ["accelerate", "launch", "recipes/tier1.py"]
    learnt = recipes.call("tier1", *recipe[3:])
    assert learnt.status == 0, learnt.err
    config = json.loads(Path("runs/bc5cdr/config.json").read_text("utf-8"))
    assert config["linker"]["retrieval"] == "tfidf"  # so that nobody needs to tell the linker
    for command in commands[1:]:
        program, *words = shlex.split(command)
        assert program == "hf-kfc"
        result = run(*words)
        assert result.status == 0, result.err
    linked = [json.loads(line) for line in Path("linked.jsonl").read_text("utf-8").splitlines()]
    assert len(linked) == 10
    assert all(len(span["candidates"]) > 1 for note in linked for span in note["spans"])
    assert "20 mentions in 10 documents" in result.out
    page = Path("scores.html").read_text("utf-8")
    assert "Accuracy by type" in page
    assert "Accuracy by mentions in training" in page
    gold = words[1]
    again = run("regressions", "linked.jsonl", "runs/bc5cdr", gold, *shlex.split(commands[1])[5:9])
    assert again.status == 0, again.err
