"""A linker as a folder and as a repository: model, tokenizer, ontology, settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...cards import render
from ...errors import DataError, HfKfcError, HubError
from ...files import read_bounded, refuse_foreign, replace_directory, scratch_directory
from ...hub import MODEL_FILES, PushedModel, Snapshot, push_model, split_revision
from ..loading import load_pretrained
from ..ontologies import Ontology, read_ontology, write_concepts
from .calibration import Calibration
from .settings import LinkerSettings

if TYPE_CHECKING:
    from .linker import EntityLinker

__all__ = ["CONFIG_FILE", "ONTOLOGY_FILE", "Loaded", "load", "push", "save"]

CONFIG_FILE = "linker_config.json"
ONTOLOGY_FILE = "ontology.jsonl"
_MODEL_CONFIG = "config.json"
_FORMAT = 1
_CONFIG_LIMIT = 2**20  # bytes
_ONTOLOGY_LIMIT = 8 * 2**30


@dataclass(frozen=True)
class Loaded:
    """What a linker is made of."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ontology: Ontology
    settings: dict[str, Any]
    calibration: Calibration | None


def save(linker: EntityLinker, folder: Path) -> None:
    """Write a linker into a folder; see :meth:`EntityLinker.save_pretrained`."""
    refuse_foreign(folder, CONFIG_FILE)
    with replace_directory(folder) as partial:
        _write(linker, partial)


def push(linker: EntityLinker, repo_id: str, **options: Any) -> PushedModel:
    """Push a linker to the Hub; see :meth:`EntityLinker.push_to_hub`."""
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


def _write(linker: EntityLinker, folder: Path) -> None:
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
) -> Loaded:
    """Read a linker; see :meth:`EntityLinker.from_pretrained`."""
    place: Path | Snapshot = Path(name_or_path)
    own_config: Path | None = Path(name_or_path) / CONFIG_FILE
    model = str(name_or_path)
    if not Path(name_or_path).exists():
        repo_id, own_revision = split_revision(model)
        place = Snapshot.find(
            repo_id, revision or own_revision, _MODEL_CONFIG, _CONFIG_LIMIT, token=token
        )
        model, own_config = str(place), _fetched_config(place)
    elif not (own_config and own_config.is_file()):
        own_config = None
    config = {} if own_config is None else _read_config(own_config, str(place))
    sha256 = config.pop("sha256", None)
    calibration = config.pop("calibration", None)
    if isinstance(ontology, str | Path):
        ontology = read_file(ontology, ontology_format)
    elif ontology is None and sha256 is not None:
        ontology = _own_ontology(place, sha256)
    if ontology is None:
        raise DataError(
            f"{place} is a ranker without an ontology; give ontology=, a file of concepts"
        )
    ranker, tokenizer = load_pretrained(model, token=token, learnt=True)
    return Loaded(ranker, tokenizer, ontology, config, calibration)


def read_file(path: str | Path, format_: str | None = None) -> Ontology:
    """Read a file of concepts; the format is told by its name where nobody says it."""
    if format_ is None:
        format_ = "json" if str(path).removesuffix(".gz").endswith(".jsonl") else "names"
    return Ontology(read_ontology([path], format_))


def _fetched_config(place: Snapshot) -> Path | None:
    try:
        return place.fetch(CONFIG_FILE, _CONFIG_LIMIT)
    except HubError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def _own_ontology(place: Path | Snapshot, sha256: str) -> Ontology:
    """Read the ontology that a linker was saved with, and hold it against its hash."""
    if isinstance(place, Snapshot):
        path = place.fetch(ONTOLOGY_FILE, _ONTOLOGY_LIMIT)
    else:
        path = place / ONTOLOGY_FILE
    ontology = read_file(path, "json")
    if ontology.fingerprint != sha256:
        raise DataError(
            f"{ONTOLOGY_FILE} of {place} is not the one that {CONFIG_FILE} names; save the linker "
            "again, or give ontology="
        )
    return ontology


def _read_config(path: Path, place: str) -> dict[str, Any]:
    """Read and check the settings, the ontology's hash and the calibration."""
    try:
        config = json.loads(read_bounded(path, _CONFIG_LIMIT))
        if config.pop("format") != _FORMAT:
            raise ValueError("it is of another version of hf_kfc")
        sha256 = config.pop("ontology")["sha256"]
        calibration = config.pop("calibration")
        LinkerSettings.of(config)
        if calibration is not None:
            names = {field.name for field in fields(Calibration)}
            if calibration.keys() != names or not all(
                isinstance(value, int | float) for value in calibration.values()
            ):
                raise ValueError("its calibration is not one")
            calibration = Calibration(**calibration)
        if not isinstance(sha256, str):
            raise ValueError("its ontology has no hash")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = error if str(error) else type(error).__name__
        raise HfKfcError(
            f"{CONFIG_FILE} of {place} cannot be read ({reason}); save the linker again"
        ) from error
    return {**config, "sha256": sha256, "calibration": calibration}
