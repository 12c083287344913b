"""What is no number, no list and no function is refused in words, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny.models import RANKERS
from tiny.priors import make_prior

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.curvature.batches import Collate
from hf_kfc.errors import CurvatureError, HfKfcError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs


@pytest.fixture(scope="module")
def prior() -> ConsolidationPrior:
    return make_prior(RANKERS["cnn"](), task="old")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: ConsolidationPrior.merge([p, p], weights=2.0), "weights 2.0 is no list of numb"),
        (lambda p: ConsolidationPrior.merge([p, p], weights="12"), "weights '12' is no list of nu"),
        (lambda p: ConsolidationPrior.merge([p, p], weights=[1, "2"]), "weight '2' is not a numb"),
        (lambda p: ConsolidationPrior.merge([p, p], damping=None), "damping None is not a number"),
        (lambda p: ConsolidationPrior.merge([p, p], rank=1.0), "rank 1.0 is no whole number"),
        (lambda p: ConsolidationPrior.merge([p, p], weights=[1, 1e308]), "weight 1e[+]308 is not"),
        (lambda p: ConsolidationPrior.merge([p, p], weights=[1, 1e-30]), "weight 1e-30 is not a n"),
        (lambda p: p.compress(rank=2.5), "rank 2.5 is no whole number"),
        (lambda p: p.without(3), "patterns is 3; give patterns of block names"),
        (lambda p: p.token_table("10"), "min_examples '10' is no whole number"),
        (lambda p: p.save_pretrained(3), "3 is no folder"),
        (lambda p: ConsolidationPrior.from_pretrained(None), "None is no folder"),
        (lambda p: ConsolidationPrior.from_pretrained("a\0b"), "is not readable .*null byte"),
        (lambda p: p.push_to_hub("org/name", tag=3, min_examples=0), "3 cannot be a tag"),
        (lambda p: p.with_probes("texts"), "a str is no Probes"),
        (lambda p: ConsolidationPrior.merge(3), "a int cannot be merged; give priors"),
        (lambda p: ConsolidationPrior.from_pretrained("org/name", cache_dir=3), "3 is no folder"),
        (lambda p: p.save_pretrained("a", card=3), "card is a int; give its text"),
        (lambda p: p.save_pretrained("x" * 300), "is no folder .*name too long"),
        (lambda p: without_rare_inputs(p, None), "min_examples None is no whole number"),
    ],
)
def test_what_is_something_else_is_refused(prior: Any, call: Any, said: str) -> None:
    with pytest.raises(PriorError, match=said):
        call(prior)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    """No such call reads the data, which there are none of, or leaves anything behind."""
    model: Any = RANKERS["cnn"]()

    def estimate(task: Any = "old", model: Any = model, args: Any = None, **more: Any) -> None:
        ConsolidationPrior.estimate(model, None, dict, args, task=task, **more)

    for call, said in (
        (lambda: estimate("\ud800"), r"'\\ud800' in a name cannot be written"),
        (lambda: estimate(anchor_metrics=[("accuracy", 1.0)]), "anchor_metrics is a list; give a"),
        (lambda: estimate(anchor_metrics={"accuracy": np.ones(3)}), "expected finite numbers by n"),
        (lambda: estimate(args={"curvature": "diagonal"}), "args is a dict; give CurvatureArgume"),
    ):
        with pytest.raises(PriorError, match=said):
            call()
    for call in (lambda: estimate(model="bert"), lambda: make_prior(model).check(None)):
        with pytest.raises(CurvatureError, match=r"is no model; give an nn\.Module"):
            call()
    with pytest.raises(PriorError, match=r"max_shard_size is no size .*; give one as '5GB'"):
        make_prior(model).save_pretrained(tmp_path / "prior", max_shard_size="big")
    with pytest.raises(HfKfcError, match="is a folder; give the name of a file"):
        make_prior(model, "kronecker").export_covariances(tmp_path)
    with pytest.raises(HfKfcError, match="3 is no folder"):
        make_prior(model, "kronecker").export_covariances(3)  # type: ignore[arg-type]
    for call in (
        lambda: ConsolidationPrior.l2(model, task="old", ignore="head"),
        lambda: ConsolidationPrior.l2(model, task="old", ignore=[None]),
        lambda: CurvatureArguments(ignore=[3]),
    ):
        with pytest.raises(CurvatureError, match=r"ignore is .*; give a list of patterns"):
            call()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(HfKfcError, match=r"loop cannot be made .*; choose another folder"):
        make_prior(model).save_pretrained(tmp_path / "loop")
    (tmp_path / "loop").unlink()
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(prior: Any) -> None:
    plain = ConsolidationPrior.merge([prior, prior], weights=[1.0, 2.0])
    same = ConsolidationPrior.merge([prior, prior], weights=np.array([1.0, 2.0]).tolist())
    own = ConsolidationPrior.merge([prior, prior], weights=[np.float32(1), np.int64(2)])
    assert plain.fingerprint == same.fingerprint == own.fingerprint
    assert prior.compress(rank=np.int64(2)).fingerprint == prior.compress(rank=2).fingerprint


def test_a_collator_is_a_function_and_tokens_are_the_models(prior: Any) -> None:
    model = RANKERS["cnn"]()
    with pytest.raises(CurvatureError, match="data_collator is a NoneType; give a function"):
        Collate(model, None, False)  # type: ignore[arg-type]
    tokens = model.get_input_embeddings().num_embeddings
    collate = Collate(model, lambda rows: {"input_ids": torch.tensor(rows)}, False)
    assert collate([[0, tokens - 1]])["input_ids"].tolist() == [[0, tokens - 1]]
    for wrong in (tokens, -1):
        with pytest.raises(CurvatureError, match=rf"and the model has {tokens}; give the tokeniz"):
            collate([[0, wrong]])
