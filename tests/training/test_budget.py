"""What may be forgotten sets how strongly earlier tasks are held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.models import RANKERS
from tiny.priors import make_prior
from tiny.probes import moved, pad_candidates, probes_of
from tiny.trainings import assert_near, make_trainer

from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationConfig
from hf_kfc.training.budget import LEAST, MOST, Budget


def forgets(factor: float) -> float:
    """Of a task that is held so: more, the weaker."""
    return 0.4 / (1 + 3 * factor)


@pytest.mark.parametrize("steps", [200, 2000])
@pytest.mark.parametrize("limit", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_what_is_forgotten_comes_to_the_budget(steps: int, limit: float, ratio: float) -> None:
    """Also where probes that are not trained on are forgotten more than those that are."""
    budget, now = Budget(limit, steps), 0.0
    for step in range(steps):
        now += 0.1 * (forgets(budget.factor("old")) - now)
        budget.learn("old", now)
        if step % 20 == 19:
            budget.measure("old", ratio * now, 20)
    assert ratio * now == pytest.approx(limit, rel=0.15)


def test_a_penalty_alone_is_set_where_it_is_measured() -> None:
    budget, now = Budget(0.1, 400), 0.0
    for step in range(400):
        now += 0.1 * (forgets(budget.factor("old")) - now)
        if step % 10 == 9:
            budget.measure("old", now, 10)
    assert now == pytest.approx(0.1, rel=0.15)


def test_each_task_has_a_factor_within_bounds() -> None:
    budget = Budget(0.1, 50)
    assert budget.largest == budget.factor("new") == 1.0
    for _ in range(2000):
        budget.learn("lost", 5.0)
        budget.learn("kept", 0.0)
    assert budget.factor("kept") == LEAST == 0.25
    assert budget.factor("lost") == budget.largest == MOST == 4.0


def test_it_goes_on_from_json() -> None:
    one, two = Budget(0.1, 50), Budget(0.1, 50)
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    for value in values[:10]:
        one.learn("old", value)
    one.measure("old", 0.3, 10)
    two.load(json.loads(json.dumps(one.state())))
    for value in values[10:]:
        one.learn("old", value)
        two.learn("old", value)
    assert one.state() == two.state()


def priors(with_probes: bool) -> list[ConsolidationPrior]:
    """One with probes of its own, and one without."""
    own = ConsolidationPrior.l2(moved("cnn"), task="own")
    other = make_prior(RANKERS["cnn"](), task="other")
    return [own.with_probes(probes_of(moved("cnn"))) if with_probes else own, other]


def test_priors_are_held_by_the_factor_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The one without probes by the largest of all; what is not kept even so is told."""
    found = []
    for strength in (0.0, 0.3):
        trainer = make_trainer(
            tmp_path,
            priors(with_probes=True),
            RANKERS["cnn"](),
            strengths=[strength],
            probe_collator=pad_candidates,
            forgetting_budget=1e-3,
            max_steps=4,
            learning_rate=0.0,
            seed=3,
        )
        trainer.train()
        found.append(trainer)
        (said,) = [text for text in caplog.messages if "budget" in text]
        assert said.startswith("The budget of 0.001 nats is not kept: of '")
        assert "at 4 times the weight" in said
        caplog.clear()
    without, held = (trainer.recorder.steps for trainer in found)
    factors = [e["probe_weight"] for e in found[1].state.log_history if "probe_weight" in e]
    assert factors == sorted(factors) and factors[0] > 1.5
    for step in range(1, 4):
        for name, gradient in held[step][1].items():
            first = (held[0][1][name] - without[0][1][name]) / factors[0]
            assert_near(gradient - without[step][1][name], factors[step] * first, name)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "much"])
def test_a_budget_is_a_positive_number(value: Any) -> None:
    with pytest.raises(ConsolidationError, match=r"forgetting_budget .* is not a number above 0"):
        ConsolidationConfig(forgetting_budget=value)
