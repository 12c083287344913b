"""A linker as a folder and as a repository: model, tokenizer, ontology, settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...cards import render
from ...errors import DataError, HfKfcError, HubError
from ...files import read_bounded, refuse_foreign, replace_directory, scratch_directory
from ...hub import MODEL_FILES, PushedModel, Snapshot, push_model, split_revision
from ...priors.files import find
from ..loading import load_pretrained
from ..ontologies import Ontology, write_concepts
from ..ontologies.readers import read_file
from .calibration import Calibration
from .recorded import recorded_settings
from .settings import LinkerSettings

__all__ = ["CONFIG_FILE", "ONTOLOGY_FILE", "Parts", "load", "push", "save"]

CONFIG_FILE = "linker_config.json"
ONTOLOGY_FILE = "ontology.jsonl"
_MODEL_CONFIG = "config.json"
_FORMAT = 1
_CONFIG_LIMIT = 2**20  # bytes
_ONTOLOGY_LIMIT = 8 * 2**30


@dataclass(frozen=True)
class Parts:
    """What a linker is made of."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ontology: Ontology
    settings: LinkerSettings
    calibration: Calibration | None


class _Config(NamedTuple):
    """What a linker's folder has beside model, tokenizer and ontology; nothing where it is none."""

    settings: LinkerSettings | None = None
    sha256: str | None = None
    calibration: Calibration | None = None


def save(linker: Parts, folder: Path) -> None:
    """Write a linker into a folder, whole or not at all; one of something else is refused."""
    refuse_foreign(folder, CONFIG_FILE)
    with replace_directory(folder) as partial:
        _write(linker, partial)


def push(linker: Parts, repo_id: str, **options: Any) -> PushedModel:
    """Push a linker to the Hub in one commit, with the options of ``push_model``."""
    with scratch_directory() as scratch:
        folder = scratch / "linker"
        folder.mkdir()
        _write(linker, folder)
        card = render(
            "linker_card.md",
            repo_id=repo_id,
            ontology=linker.ontology,
            settings=linker.settings,
            calibration=linker.calibration,
        )
        named = (*MODEL_FILES, CONFIG_FILE, ONTOLOGY_FILE)
        return push_model(folder, repo_id, card=card, files=named, **options)


def _write(linker: Parts, folder: Path) -> None:
    linker.model.save_pretrained(folder)
    linker.tokenizer.save_pretrained(folder)
    write_concepts(linker.ontology, folder / ONTOLOGY_FILE)
    config = {
        "format": _FORMAT,
        **asdict(linker.settings),
        "ontology": {
            "sha256": linker.ontology.fingerprint,
            "num_concepts": len(linker.ontology),
        },
        "calibration": None if linker.calibration is None else asdict(linker.calibration),
    }
    text = json.dumps(config, indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load(
    name_or_path: str | Path,
    ontology: str | Path | Ontology | None,
    ontology_format: str | None,
    revision: str | None,
    token: str | None,
) -> Parts:
    """Read a linker from a folder or the Hub, and check the ontology against its sum."""
    place, config = _find(str(name_or_path), revision, token)
    if isinstance(ontology, str | Path):
        ontology = read_file(ontology, ontology_format)
    elif ontology is None and config.sha256 is not None:
        ontology = _own_ontology(place, config.sha256)
    if ontology is None:
        raise DataError(
            f"{place} is a ranker without an ontology; give ontology=, a file of concepts"
        )
    ranker, tokenizer = load_pretrained(str(place), token=token, learnt=True)
    settings = config.settings or recorded_settings(ranker, str(place))
    return Parts(ranker, tokenizer, ontology, settings, config.calibration)


def _find(name: str, revision: str | None, token: str | None) -> tuple[Path | Snapshot, _Config]:
    """Find a folder, or a repository at one commit, and read its settings if it has any."""
    folder = Path(name)
    if folder.exists():
        own = folder / CONFIG_FILE
        return folder, _read_config(own, name) if own.exists() else _Config()
    repo_id, own_revision = split_revision(name)
    place = Snapshot.find(
        repo_id, revision or own_revision, _MODEL_CONFIG, _CONFIG_LIMIT, token=token
    )
    try:
        return place, _read_config(place.fetch(CONFIG_FILE, _CONFIG_LIMIT), str(place))
    except HubError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return place, _Config()
        raise


def _own_ontology(place: Path | Snapshot, sha256: str) -> Ontology:
    """Read the ontology that a linker was saved with, and hold it against its hash."""
    ontology = read_file(find(place, ONTOLOGY_FILE, _ONTOLOGY_LIMIT), "json")
    if ontology.fingerprint != sha256:
        raise DataError(
            f"{ONTOLOGY_FILE} of {place} is not the one that {CONFIG_FILE} names; save the linker "
            "again, or give ontology="
        )
    return ontology


def _read_config(path: Path, place: str) -> _Config:
    """Read and check what somebody else may have written."""
    try:
        config = json.loads(read_bounded(path, _CONFIG_LIMIT))
        if config.pop("format") != _FORMAT:
            raise ValueError("it is of another version of hf_kfc")
        sha256, calibration = config.pop("ontology")["sha256"], config.pop("calibration")
        settings = LinkerSettings.of(config)
        if not isinstance(sha256, str):
            raise ValueError("its ontology has no hash")
        if calibration is not None:
            if not all(isinstance(value, int | float) for value in calibration.values()):
                raise ValueError("its calibration is not numbers")
            calibration = Calibration(**calibration)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise HfKfcError(
            f"{CONFIG_FILE} of {place} cannot be read ({error or type(error).__name__}); save the "
            "linker again"
        ) from error
    return _Config(settings, sha256, calibration)
