import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny.models import cnn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.commands import main
from hf_kfc.ranking import (
    FEATURES,
    CandidateCollator,
    CnnForMultipleChoice,
    encode_candidates,
    ranking_forward,
    ranking_position_mask,
    train_tokenizer,
)

SEEN = ["fever", "cough", "rash", "itch", "pain"]
UNSEEN = ["femur", "tibia", "ulna", "skull", "spine"]


@dataclass(frozen=True)
class Tier:
    """What a tier leaves, in folders: a model with its tokenizer, its prior and examples."""

    model: Path
    prior: Path
    members: Path
    others: Path


def ranking_examples(words: list[str], count: int) -> datasets.Dataset:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        names = draw.sample(words, 3)
        row = dict.fromkeys(FEATURES, 0) | {
            "id": str(number),
            "document": str(number),
            "mention": draw.choice(words),
            "left": f"the {draw.choice(words)}",
            "right": "was there",
            "candidate_ids": names,
            "candidate_names": names,
            "same_name": [],
            "label": draw.randrange(3),
        }
        rows.append(row)
    return datasets.Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="session")
def tier(tmp_path_factory: pytest.TempPathFactory) -> Tier:
    """A CNN and its KFC prior of twenty examples; the others have other words."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("tier")
    found = Tier(root / "model", root / "prior", root / "members", root / "others")
    members, others = ranking_examples(SEEN, 20), ranking_examples(UNSEEN, 12)
    members.save_to_disk(found.members)
    others.save_to_disk(found.others)
    texts = [" ".join([*SEEN, *UNSEEN, "the was there"])]
    tokenizer = train_tokenizer(texts, vocab_size=200)
    tokenizer.save_pretrained(found.model)
    model = cnn(seed=0, vocab_size=len(tokenizer))
    model.save_pretrained(found.model)
    prior = ConsolidationPrior.estimate(
        model,
        encode_candidates(members, tokenizer, 64),
        CandidateCollator(tokenizer),
        CurvatureArguments(curvature="kronecker"),
        task="symptoms",
        anchor_metrics={"accuracy": 0.5},
        forward=ranking_forward,
        position_mask=ranking_position_mask,
    )
    prior.save_pretrained(found.prior)
    return found


@dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def values(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.out)
        return values


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs ``hf-kfc`` in this process."""

    def call(*words: object) -> Result:
        status: Any = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def changed(tier: Tier, tmp_path: Path) -> Callable[..., Path]:
    """Saves the tier's model with one number added to some of its parameters."""

    def save(*names: str, by: float = 0.25) -> Path:
        model = CnnForMultipleChoice.from_pretrained(tier.model)
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).add_(by)
        model.save_pretrained(tmp_path / "changed")
        return tmp_path / "changed"

    return save


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model that has its tokenizer."""

    def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    torch.manual_seed(0)
    return save
