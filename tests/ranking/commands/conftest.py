"""A saved linker, a ranker beside its ontology, and notes whose mentions have right answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands.conftest import run  # noqa: F401 - a fixture
from ranking.linker.conftest import model, ontology, quiet, tokenizer  # noqa: F401 - fixtures
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_kfc.ranking import EntityLinker
from hf_kfc.ranking.ontologies import Ontology


@dataclass(frozen=True)
class Place:
    """Where things are: ``linker`` a whole one, ``ranker`` and ``names`` its parts."""

    folder: Path
    linker: Path
    ranker: Path
    names: Path
    gold: Path


def note(id_: str, *mentions: tuple[str, str | None], type_: str = "Disease") -> dict[str, object]:
    """A note that has mentions one after another."""
    text, spans = "The doctor found", []
    for words, code in mentions:
        start = len(text) + 1
        text += f" {words} and"
        spans.append({"start": start, "end": start + len(words), "code": code, "type": type_})
    return {"id": id_, "text": f"{text} nothing else.", "spans": spans}


def write_notes(path: Path, *notes: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(own)}\n" for own in notes), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def saved(
    model: PreTrainedModel,  # noqa: F811
    tokenizer: PreTrainedTokenizerBase,  # noqa: F811
    ontology: Ontology,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    linker = EntityLinker(model, tokenizer, ontology, cache_dir=folder / "cache", num_candidates=4)
    linker.save_pretrained(folder / "linker")
    model.save_pretrained(folder / "ranker")
    tokenizer.save_pretrained(folder / "ranker")
    names = (f"{concept.id}\t{name}\n" for concept in ontology for name in concept.names)
    (folder / "names.tsv").write_text("".join(names), encoding="utf-8")
    return folder


@pytest.fixture
def place(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The saved things, and three notes with five mentions, one of them without a concept."""
    monkeypatch.chdir(tmp_path)
    gold = write_notes(
        tmp_path / "gold.jsonl",
        note("a", ("head pain", "H00"), ("jaw wound", "J73")),
        note("b", ("liver cancer", "L52"), ("knee swelling", None), type_="Sign"),
        note("c"),
        note("é", ("eye pain", "E90")),
    )
    return Place(tmp_path, saved / "linker", saved / "ranker", saved / "names.tsv", gold)


Run = Callable[..., object]
