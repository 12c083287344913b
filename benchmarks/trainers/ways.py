"""Runs transformers' own trainer tests with another trainer in the place of theirs.

A plugin of pytest, for tests that are not part of this repository::

    python -m pytest -p benchmarks.trainers.ways --way beside --results results.json tests/trainer

Ways are ``plain``, the Trainer as it is; ``without``, ConsolidationTrainer without priors; and with
a prior F = I of the test's own model at strength 0, ``arguments``, whose settings are in
ConsolidationArguments, and ``beside``, in a ConsolidationConfig beside TrainingArguments. Trainers
of one test whose models have the same parameters have one prior, as a training that is resumed.
Loss and parameters at the end of every training are kept as a digest, so that the ways can be
compared bit by bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import transformers.trainer
import transformers.trainer_seq2seq
from torch import nn

from benchmarks.trainers import stand_ins
from hf_kfc.dataset import random_numbers_kept
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import (
    ConsolidationArguments,
    ConsolidationConfig,
    ConsolidationMixin,
    ConsolidationTrainer,
)

WAYS = ("plain", "without", "arguments", "beside")


@dataclasses.dataclass
class Seen:
    """What a test did."""

    outcome: str = ""
    message: str = ""
    trainings: list[str] = dataclasses.field(default_factory=list)
    trainers: int = 0
    without: list[str] = dataclasses.field(default_factory=list)


class Ways:
    """The plugin's state: what each test did, and the priors of the present one."""

    def __init__(self, way: str) -> None:
        self.way, self.now = way, ""
        self.seen: dict[str, Seen] = defaultdict(Seen)
        self.priors: dict[Any, ConsolidationPrior] = {}

    def put_in_place(self) -> None:
        """Replace the trainers, before any test imports them."""
        self._keep_trainings()
        if self.way == "plain":
            return

        class ConsolidationSeq2SeqTrainer(ConsolidationMixin, transformers.Seq2SeqTrainer):
            pass

        kinds: list[Any] = [ConsolidationTrainer, ConsolidationSeq2SeqTrainer]
        if self.way != "without":
            kinds = [self._with_prior(kind) for kind in kinds]
        if self.way == "arguments":
            transformers.TrainingArguments = AtStrength0
            transformers.Seq2SeqTrainingArguments = AtStrength0
        for module in (transformers, transformers.trainer):
            module.Trainer = kinds[0]
        for module in (transformers, transformers.trainer_seq2seq):
            module.Seq2SeqTrainer = kinds[1]

    def _keep_trainings(self) -> None:
        train = transformers.Trainer.train
        seen = self

        def kept(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            result = train(trainer, *args, **kwargs)
            digest = hashlib.sha256(repr(result.training_loss).encode())
            model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
            for name, value in model.named_parameters():
                digest.update(name.encode() + value.detach().float().numpy(force=True).tobytes())
            seen.seen[seen.now].trainings.append(digest.hexdigest())
            return result

        kept.__signature__ = inspect.signature(train)  # type: ignore[attr-defined]
        transformers.Trainer.train = kept

    def _with_prior(self, kind: Any) -> Any:
        ways, parameters = self, inspect.signature(transformers.Trainer.__init__)

        class WithPrior(kind):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                seen = ways.seen[ways.now]
                seen.trainers += 1
                known = {k: v for k, v in kwargs.items() if k in parameters.parameters}
                given = parameters.bind_partial(self, *args, **known).arguments
                try:
                    kwargs["priors"] = [ways.prior_of(given.get("model"), given.get("model_init"))]
                except Exception as error:  # no model, or one that can have no prior
                    seen.without.append(f"{type(error).__name__}: {error}")
                else:
                    if ways.way == "beside":
                        kwargs["consolidation"] = ConsolidationConfig(strengths=[0.0])
                    elif given.get("args") is None:
                        kwargs["args"] = AtStrength0("tmp_trainer")
                super().__init__(*args, **kwargs)

        WithPrior.__name__, WithPrior.__qualname__ = kind.__name__, kind.__qualname__
        return WithPrior

    def prior_of(self, model: Any, model_init: Any) -> ConsolidationPrior:
        """Return the prior of a model, that of an earlier one with the same parameters."""
        if model is None:
            with random_numbers_kept(0):
                model = model_init(*[None] * len(inspect.signature(model_init).parameters))
        if not isinstance(model, nn.Module):
            raise TypeError(f"a {type(model).__name__} is no model")
        shapes = tuple((n, p.shape, p.requires_grad) for n, p in model.named_parameters())
        key = type(model).__qualname__, shapes
        if key not in self.priors:
            self.priors[key] = ConsolidationPrior.l2(model, task="old")
        return self.priors[key]

    @pytest.fixture(autouse=True)
    def _one_test(self, request: pytest.FixtureRequest) -> None:
        self.now = _name(request.node.nodeid)
        self.priors.clear()
        _seed()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the outcome of a test, or of its setting up and taking down where that failed."""
        seen = self.seen[_name(report.nodeid)]
        if (report.when == "call" or report.outcome != "passed") and seen.outcome != "failed":
            seen.outcome = report.outcome
            crash = getattr(report.longrepr, "reprcrash", None)
            said: Any = report.longrepr
            said = said[2] if report.skipped else getattr(crash, "message", "")
            seen.message = str(said).partition("\n")[0]

    def save(self, path: Path) -> None:
        """Add what was seen to a file of all ways."""
        kept = (
            json.loads(path.read_text("utf-8")) if path.exists() else {"tests": {}, "without": {}}
        )
        kept["transformers"] = transformers.__version__
        for name, seen in self.seen.items():
            if not seen.outcome:
                continue
            trained = hashlib.sha256("".join(seen.trainings).encode()).hexdigest()[:12]
            row = [seen.outcome, len(seen.trainings), trained, seen.trainers, seen.message[:300]]
            kept["tests"].setdefault(name, {})[self.way] = row
            if seen.without:
                kept["without"].setdefault(name, {})[self.way] = seen.without
        rows = ",\n".join(
            f"  {json.dumps(name)}: {{\n"
            + ",\n".join(f"   {json.dumps(way)}: {json.dumps(row)}" for way, row in ways.items())
            + "\n  }"
            for name, ways in sorted(kept["tests"].items())
        )
        rest = {name: value for name, value in kept.items() if name != "tests"}
        text = f'{json.dumps(rest, indent=1)[:-2]},\n "tests": {{\n{rows}\n }}\n}}\n'
        path.write_text(text, "utf-8")


@dataclasses.dataclass
class AtStrength0(ConsolidationArguments):
    """In the place of TrainingArguments: their defaults, and strength 0."""

    strengths: list[float] | None = dataclasses.field(default_factory=lambda: [0.0])


AtStrength0.__name__ = ConsolidationArguments.__name__


def _name(nodeid: str) -> str:
    return nodeid.rpartition("/")[2]


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the way, and where results are kept."""
    parser.addoption("--way", choices=WAYS, default="plain")
    parser.addoption("--results", type=Path, default=Path("results.json"))


def pytest_configure(config: pytest.Config) -> None:
    """Put trainers and stand-ins in place."""
    folder = Path(tempfile.mkdtemp(prefix="trainers-"))
    stand_ins.make(folder)
    stand_ins.put_in_place(folder)
    fixture = config.rootpath / "tests" / "fixtures" / "sample_text.txt"
    fixture.parent.mkdir(parents=True, exist_ok=True)
    fixture.write_text("\n\n".join(stand_ins.texts()), "utf-8")
    ways = Ways(config.getoption("--way"))
    ways.put_in_place()
    config.pluginmanager.register(ways, "ways")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the results."""
    session.config.pluginmanager.get_plugin("ways").save(session.config.getoption("--results"))
