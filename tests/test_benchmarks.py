"""The benchmarks run at toy sizes, and leave the committed results alone."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pubtator_text import block
from transformers import BertConfig, BertForSequenceClassification, BertModel

from hf_kfc.curvature.discovery import Survey
from hf_kfc.ranking import train_tokenizer
from hf_kfc.ranking.tasks import prepare_task
from laboratory import DataArguments, LearningArguments, RankerArguments

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SPEED = BENCHMARKS / "speed"
RANKER = RankerArguments(hidden_size=8, vocab_size=500)
LEARNING = LearningArguments(epochs=1, learning_rate=0.01)
# As many of each split, so that documents of all reach to the last part.
DATA = DataArguments(train_examples=64, validation_examples=64, test_examples=64)


def test_sharing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    benchmark = load("approximations/sharing.py", monkeypatch, TASK="articles", EXAMPLES=4)
    for name, value in {"HERE": tmp_path, "RANKER": RANKER, "LEARNING": LEARNING}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(sys, "argv", ["sharing.py", "--data_dir", str(tmp_path)])
    benchmark.main()
    page = (tmp_path / "sharing.md").read_text()
    assert page.count("| centred | ") == 2
    assert "| embeddings | convolution | dense | classifier |" in page


@pytest.mark.parametrize(
    ("script", "words", "shown"),
    [
        ("step", ("--penalty_every", 2), "10 merged to rank 4"),
        ("probes", ("--ranker", "cnn"), "probes and 1 prior"),
        ("scaling", (), "penalty, power of tasks"),
        ("size", ("--ranker", "cnn"), "published, rank 4, bfloat16"),
        ("paper", (), "of that, the vocabulary"),
        ("processes", (), "penalty: a process's share of multiplications"),
        ("causal", (), "peak memory, published, every 4th step, over plain"),
    ],
)
def test_at_toy_sizes(script: str, words: tuple[object, ...], shown: str) -> None:
    command = [sys.executable, str(SPEED / f"{script}.py"), "--tiny", *map(str, words)]
    before = {path: path.stat().st_mtime_ns for path in SPEED.rglob("*.json")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert {path: path.stat().st_mtime_ns for path in SPEED.rglob("*.json")} == before


def test_a_result_says_how_the_allocator_was_set(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = [str(SPEED / "size.py"), "--tiny", "--output", str(results)]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_")}
    subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        env=environment | {"MALLOC_TRIM_THRESHOLD_": "1000000"},
        timeout=300,
        check=True,
    )
    command = json.loads(results.read_text())["command"]
    assert command == " ".join(["MALLOC_TRIM_THRESHOLD_=1000000", "python", *words])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("linking/speed.py", "| CNN, width 128, tfidf |"),
        ("architectures/experts.py", "Kronecker, experts by example"),
    ],
)
def test_of_other_folders_at_toy_sizes(name: str, shown: str) -> None:
    script = BENCHMARKS / name
    before = {path: path.stat().st_mtime_ns for path in script.parent.iterdir()}
    command = [sys.executable, str(script), "--tiny"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert {path: path.stat().st_mtime_ns for path in script.parent.iterdir()} == before


def load(path: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """A benchmark as a module, on tasks that are made up."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, BENCHMARKS / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, Path(path).stem, module)
    spec.loader.exec_module(module)
    tasks = {"OLD": "articles", "NEW": "patients"} if hasattr(module, "OLD") else {}
    for name, value in (tasks | changes).items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    return module


def test_tied_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"SEEDS": 1, "MULTIPLES": (20.0,), "TEXTS": 128, "HERE": tmp_path}
    benchmark = load("approximations/tied_head.py", monkeypatch, **sizes)
    monkeypatch.setattr(sys, "argv", ["tied_head.py"])
    benchmark.main()
    rows = {row["prior"]: row for row in json.loads((tmp_path / "tied_head.json").read_text())}
    assert list(rows) == ["before", "no prior", "both products", "diagonal", "nothing"]
    old = {name: row["old"] for name, row in rows.items()}
    assert len(set(old.values())) == 5  # the three priors are three
    assert (tmp_path / "tied_head.md").read_text().count("\n| ") == 6


def test_approximations(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("approximations/measure.py", monkeypatch, PARTS=2, RANKS=(1,))
    stage = benchmark.Stage(RANKER, LEARNING, DATA, replace(DATA, train_examples=32), 0)
    for rows in (list(stage.compressed()), list(stage.merged())):
        table = benchmark._table(rows)
        assert [line.split(" | ")[0] for line in table[2:]] == [f"| {r['prior']}" for r in rows]
    assert rows[2]["errors"]  # of the merged one


def test_privacy(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"OLD_EXAMPLES": 64, "CURVATURE_EXAMPLES": 32, "RANKER": RANKER, "LEARNING": LEARNING}
    benchmark = load("privacy/cost.py", monkeypatch, MULTIPLES=(1.0,), **sizes)
    stage = benchmark.Stage(DATA, 0)
    comparison = stage.compare()
    assert [outcome.method for outcome in comparison.outcomes] == [
        "none",
        "whole, λ / Bayes = 1",
        "published, λ / Bayes = 1",
    ]
    assert benchmark.cost_table([comparison, comparison]).count("\n") == 4
    table = benchmark._membership_table(stage.audit())
    assert "| whole | published |" in table and "test mentions" in table


def test_span(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("privacy/span.py", monkeypatch, WIDTH=48, VOCABULARY=200)
    before, after = (benchmark.attacked(30, least) for least in (0, 10))
    assert before.auc > after.auc


def test_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "privacy"))
    sizes = {"OLD_EXAMPLES": 64, "CURVATURE_EXAMPLES": 32, "MULTIPLES": (1.0,)}
    benchmark = load("privacy/unseen.py", monkeypatch, RANKER=RANKER, LEARNING=LEARNING, **sizes)
    comparison, counts = benchmark.compare(DATA, 0)
    assert benchmark.cost_table([comparison, comparison]).count("\n") == 5
    kept = counts["tokens kept"]
    assert kept["as estimated"] > kept["rare rows dropped"] > 0
    assert abs(kept["rare tokens unseen"] - kept["rare rows dropped"]) <= 1  # the unknown one


def save_encoder(folder: Path) -> None:
    tokenizer = train_tokenizer(["fever of the patient"])
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=3, **sizes)
    for saved in (tokenizer, BertModel(config)):
        saved.save_pretrained(folder)


def test_bfloat16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    limits = {"train": 32, "validation": 8, "test": 8}
    ontology = prepare_task("articles", data_dir=tmp_path, max_examples=limits).ontology
    texts = [block(c.id, c.name, "No more.", (c.name, c.id)) for c in ontology.take(range(8))]
    (tmp_path / "marked.txt").write_text("".join(texts), encoding="utf-8")
    changes: dict[str, Any] = {"TASK": "articles", "LIMITS": limits, "HERE": tmp_path, "BATCH": 2}
    changes |= {"KNOWN": "marked.txt", "TEST": "marked.txt", "CALIBRATED_ON": 6, "MEASURED_ON": 7}
    benchmark = load("linking/bfloat16.py", monkeypatch, **changes)
    words = ["--data_dir", str(tmp_path), "--minilm", str(tmp_path / "encoder")]
    monkeypatch.setattr(sys, "argv", ["bfloat16.py", *words])
    benchmark.main()
    made = json.loads((tmp_path / "bfloat16.json").read_text())
    for name in ("ranker alone", "calibrated"):
        own = made[name]
        assert (own["mentions"], own["with a candidate"]) == (7, 7)
        assert own["probability moved, most"] < 0.1  # rounding, and no more
    assert made["calibrated"]["float32"] != made["ranker alone"]["float32"]


def test_dropout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    monkeypatch.syspath_prepend(str(BENCHMARKS / "linking"))
    runs = ((1e-2, 0.9, 1), (1e-2, 0.0, 1), (1e-2, 0.0, 2))
    limits = {"train": 176, "validation": 16, "test": 1}
    changes: dict[str, Any] = {"TASK": "articles", "RUNS": runs, "LIMITS": limits, "HERE": tmp_path}
    benchmark = load("linking/dropout.py", monkeypatch, **changes)
    words = ["--data_dir", str(tmp_path), "--minilm", str(tmp_path / "encoder")]
    monkeypatch.setattr(sys, "argv", ["dropout.py", *words])
    benchmark.main()
    made = json.loads((tmp_path / "dropout.json").read_text())["runs"]
    assert [run["steps"] for run in made] == [11, 11, 22]
    assert (tmp_path / "dropout.md").read_text().count("\n| ") == 3


A_TEST_OF_THE_TRAINER = """
import torch
from transformers import Trainer, TrainingArguments

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(()))
    def forward(self, x, labels):
        return {"loss": ((self.a * x - labels) ** 2).mean(), "logits": self.a * x}

def test_a_line_is_learnt(tmp_path):
    data = [{"x": torch.tensor(1.0), "labels": torch.tensor(2.0)}] * 16
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, learning_rate=0.1)
    Trainer(Line(), args, train_dataset=data).train()
"""


def test_the_trainers_tests_have_the_trainer_of_the_way(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_line.py").write_text(A_TEST_OF_THE_TRAINER)
    results = tmp_path / "results.json"
    for way in ("plain", "without", "arguments", "beside"):
        words = ["-p", "benchmarks.trainers.ways", "--way", way, "--results", str(results)]
        command = [sys.executable, "-m", "pytest", "-c", "/dev/null", *words, "tests"]
        paths = {"PYTHONPATH": str(BENCHMARKS.parent)}
        done = subprocess.run(
            [*command, "--rootdir", "."],
            cwd=tmp_path,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    ways = json.loads(results.read_text())["tests"]["test_line.py::test_a_line_is_learnt"]
    assert {tuple(row[:3]) for row in ways.values()} == {("passed", 1, ways["plain"][2])}
    assert [row[3] for row in ways.values()] == [0, 0, 1, 1]  # trainers with a prior


def test_the_page_of_language_models_is_that_of_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = load("lm/tables.py", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--output", str(tmp_path)])
    tables.main()
    for made in tmp_path.iterdir():
        committed = BENCHMARKS / "lm" / made.name
        if made.suffix == ".md":
            assert made.read_text("utf-8") == committed.read_text("utf-8")
        assert committed.exists()


def test_answers_have_a_column_where_questions_were_asked(tmp_path, monkeypatch):
    lines = (BENCHMARKS / "lm" / "spanish-120.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["settings"]["answers"] = 8
    for record in records:
        if "point" in record:
            record["new"]["answers"] = 0.125 if record["point"]["method"] == "individual" else 0.25
    text = "\n".join(map(json.dumps, records))
    (tmp_path / "asked.jsonl").write_text(f"{text}\n", "utf-8")
    tables = load("lm/tables.py", monkeypatch)
    words = ["tables.py", "--results", str(tmp_path), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    tables.main()
    page = (tmp_path / "results.md").read_text("utf-8")
    assert "Of up to 8 questions the anchor answers 12.5% rightly." in page
    header, _, *rows = [line.split(" | ") for line in page.splitlines() if line.startswith("|")][:6]
    place = header.index("answers")
    assert {row[place] for row in rows} == {"25.0%"}


def test_the_table_of_static_coverage_is_made_of_its_lines(monkeypatch):
    static = load("architectures/static.py", monkeypatch)
    lines = (BENCHMARKS / "architectures" / "static.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[1:]]
    assert (BENCHMARKS / "architectures" / "static.md").read_text("utf-8").strip() == static.table(
        rows
    )
    built = [row for row in rows if row["built"]]
    assert len(built) >= 700
    assert sum(row["accepted"] for row in built) >= 0.95 * len(built)


def test_a_parameter_without_curvature_would_be_seen(monkeypatch):
    static = load("architectures/static.py", monkeypatch)
    known = static.look(BertConfig, BertForSequenceClassification)
    assert known["accepted"]
    assert known["by_diagonal"] == 0
    monkeypatch.setattr(static, "survey", lambda model: Survey([], [], {}))
    assert not static.look(BertConfig, BertForSequenceClassification)["accepted"]
