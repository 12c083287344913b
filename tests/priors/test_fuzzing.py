"""Whatever happens to the files: a prior is loaded as it was saved, or refused with a message."""

import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hub_server import HubServer
from tiny.priors import assert_equal_priors, model, prior

from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior

from .artefacts import KINDS, WORDS, Files
from .forging import read_config, write_config
from .hub_cases import MODEL, put_model


def write(folder: Path, files: Files) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def is_loaded(folder: Path) -> bool:
    """Load it, and compare it bit by bit with what was saved."""
    try:
        loaded = ConsolidationPrior.from_pretrained(folder)
    except PriorError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 20_000
        return False
    assert_equal_priors(loaded, prior())
    assert loaded.fingerprint == prior().fingerprint
    return True


def test_there_are_a_thousand() -> None:
    assert sum(cases for _, cases in KINDS.values()) + ANCHORS >= 1_000


@pytest.mark.parametrize("kind", KINDS)
def test_an_artefact_is_refused_or_equal(kind: str, tmp_path: Path) -> None:
    damage, cases = KINDS[kind]
    accepted = 0
    for seed in range(cases):
        files = damage(Random(seed))
        accepted += is_loaded(write(tmp_path / "prior", files))
    assert accepted < cases / 10  # the damage reaches what it is to damage


ANCHORS = 120


def test_a_forged_pointer_to_the_anchor_is_refused_or_equal(hub: HubServer, tmp_path: Path) -> None:
    shas = [put_model(dict(model(seed).named_parameters())) for seed in (0, 1)]
    prior().save_pretrained(tmp_path / "prior", anchor=f"{MODEL}@{shas[0]}")
    honest = read_config(tmp_path / "prior")
    accepted = 0
    for seed in range(ANCHORS):
        config: Any = honest | {"anchor": _forged(Random(seed), honest["anchor"], shas)}
        write_config(tmp_path / "prior", config)
        accepted += is_loaded(tmp_path / "prior")
    assert accepted < ANCHORS / 10


def _forged(random: Random, anchor: dict[str, Any], shas: list[str]) -> Any:
    (name, entry), *_ = anchor["files"].items()
    other = {
        "the whole": lambda: random.choice(WORDS),
        "repository": lambda: anchor | {"repo_id": random.choice([*WORDS, "a/b/c", "../x", "o/n"])},
        "revision": lambda: anchor | {"revision": random.choice([*WORDS, shas[1], "f" * 40, "v1"])},
        "files": lambda: anchor | {"files": random.choice([*WORDS, {name: random.choice(WORDS)}])},
        "name": lambda: (
            anchor
            | {"files": {random.choice(["../" + name, "config.json", "x\0", "", "\ud800"]): entry}}
        ),
        "entry": lambda: (
            anchor | {"files": {name: entry | {random.choice(list(entry)): random.choice(WORDS)}}}
        ),
        "sum": lambda: (
            anchor | {"files": {name: entry | {"sha256": f"{random.getrandbits(256):064x}"}}}
        ),
        "tensors": lambda: (
            anchor | {"files": {name: entry | {"tensors": random.sample(entry["tensors"], 3)}}}
        ),
    }
    return other[random.choice(list(other))]()
