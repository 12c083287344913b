"""What a later tier begins with: a model that has learnt, old and new tasks, and priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.hub import HUB_FAILURES, pin, reason_of, split_revision, walk_tiers
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CandidateCollator
from hf_kfc.training import bayesian_strength

from .arguments import DataArguments, LearningArguments, RankerArguments
from .data import TaskData
from .methods import NAMES, Method, check_methods
from .processes import shared
from .results import Remembered
from .tiers import Learned, as_learned, check_rehearsal, learn, make_prior, prepare

__all__ = ["Sources", "Stage", "from_priors", "from_scratch"]

# What AutoModel and AutoTokenizer read; weights in safetensors only, which run no code.
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


@dataclass(frozen=True)
class Sources:
    """The model that a tier goes on from, and the priors it is consolidated against.

    Args:
        model: ``"org/name@sha"``, or a folder.
        names: ``"org/name@sha"`` or folder of each prior.
        priors: The priors.
    """

    model: str
    names: Sequence[str]
    priors: Sequence[ConsolidationPrior]

    @classmethod
    def find(cls, model: str, priors: Sequence[str]) -> Sources:
        """Find out what names stand for now, the same in every process, and read the priors.

        Args:
            model: Folder, ``"org/name"`` or ``"org/name@revision"``.
            priors: Likewise; none for those that the model's card leads back to, from the first
                tier to the last.

        Raises:
            PriorError: A prior or a card cannot be read.
            ConsolidationError: There are no priors, and the model is a folder.
        """
        model, names = shared(lambda: _pinned(model, priors))
        return cls(model, names, [ConsolidationPrior.from_pretrained(name) for name in names])

    def model_folder(self) -> str:
        """Return where the model's files are on this machine; fetch them if need be.

        Raises:
            ConsolidationError: They are out of reach.
        """
        repo_id, revision = split_revision(self.model)
        if revision is None:
            return self.model
        try:
            patterns = list(_MODEL_FILES)
            return snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
        except HUB_FAILURES as error:
            raise ConsolidationError(
                f"model {self.model} cannot be downloaded: {reason_of(error)}"
            ) from error

    def to_dict(self) -> dict[str, object]:
        """Return what tells these sources from others, as JSON values."""
        fingerprints = [prior.fingerprint for prior in self.priors]
        return {"model": self.model, "priors": list(self.names), "fingerprints": fingerprints}


@dataclass(frozen=True)
class Stage:
    """Everything that is ready when a later tier begins.

    Args:
        start: The model to go on from.
        tokenizer: Its tokenizer.
        collator: Makes batches of encoded examples.
        old: Old tasks to measure forgetting on; possibly none.
        new: The task to learn.
        old_before: Accuracy on the old tasks, their mean; None if there are none.
        priors: Of each method, in the order in which they are to be tried.
        methods: What else a method does, of those that do more than their priors.
        multiples: Strengths to choose from, as multiples of the Bayesian value.
    """

    start: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collator: CandidateCollator
    old: Sequence[TaskData]
    new: TaskData
    old_before: float | None
    priors: Mapping[str, Sequence[ConsolidationPrior]]
    methods: Mapping[str, Method] = field(default_factory=dict)
    multiples: Sequence[float] = (1.0,)

    @property
    def last(self) -> Sequence[ConsolidationPrior]:
        """The priors of the last method, whose model is kept."""
        return self.priors[list(self.priors)[-1]]

    @property
    def old_names(self) -> str:
        """The names of the old tasks."""
        names = [task.name for task in self.old] or [prior.task for prior in self.last]
        return " + ".join(names)

    def remembered(self) -> list[Remembered]:
        """Say what the priors of the last method tell of their tasks."""
        return [
            Remembered(
                prior.task,
                prior.provenance.anchor_metrics.get("accuracy"),
                prior.fingerprint,
                str(prior.source) if prior.source else None,
            )
            for prior in self.last
        ]


def from_priors(
    sources: Sources,
    task: str,
    old_tasks: Sequence[str],
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> Stage:
    """Prepare to learn a task with no method, and against given priors.

    Args:
        sources: Model and priors.
        task: The new task.
        old_tasks: Tasks to measure forgetting on.
        ranker: Length of examples and number of layers.
        data: The examples.
        learning: How to train.
        curvature: How the new task's prior will be estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    _check_strengths(learning.strengths, len(sources.priors))
    start, tokenizer, (new, *old) = prepare(
        replace(ranker, ranker=sources.model_folder()),
        learning.seed,
        [(name, data) for name in (task, *old_tasks)],
        curvature,
    )
    for prior in sources.priors:
        prior.check(start)
        if learning.strengths is None:
            bayesian_strength(prior, len(new.train))  # not first after learning with no method
    collator = CandidateCollator(tokenizer)
    before = _accuracy(as_learned(start, collator, learning), old)
    kinds = dict.fromkeys(prior.provenance.curvature for prior in sources.priors)
    method = " + ".join(NAMES.get(kind, kind) for kind in kinds)
    methods: dict[str, Sequence[ConsolidationPrior]] = {"none": [], method: sources.priors}
    return Stage(start, tokenizer, collator, old, new, before, methods)


def from_scratch(
    old_task: str,
    task: str,
    methods: Sequence[str],
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> Stage:
    """Do tier 1 on the spot and prepare to learn a second task with several methods.

    Args:
        old_task: The task to learn first.
        task: The new task.
        methods: Names as :meth:`~laboratory.methods.Method.parse` takes them.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train.
        curvature: How priors are estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    parsed = check_methods(methods)
    _check_strengths(learning.strengths, 1)
    for name, method in parsed.items():
        if learning.strengths is None and method.curvature == "identity":
            raise ConsolidationError(f"method '{name}' has no Bayesian strength; give --strengths")
        if method.average == "scores":
            raise ConsolidationError(
                f"method '{name}' is of several models, of which a tier keeps one; run it by "
                "python -m laboratory permutations"
            )
    start, tokenizer, (old, new) = prepare(
        ranker, learning.seed, [(old_task, data), (task, data)], curvature
    )
    for method in parsed.values():
        check_rehearsal(method, new, [old], learning)
    collator = CandidateCollator(tokenizer)
    first = learn(start, old, collator, learning)
    before = first.accuracy(old.test)
    metrics = {"accuracy": before}
    priors = {
        name: [make_prior(method, first, old, collator, curvature, metrics)]
        if method.curvature
        else []
        for name, method in parsed.items()
    }
    return Stage(
        first.model, tokenizer, collator, [old], new, before, priors, parsed, multiples=(1.0, 10.0)
    )


def _check_strengths(strengths: Sequence[float] | None, num_priors: int) -> None:
    """Refuse here what the Trainer would refuse after learning with no method."""
    if strengths is not None and len(strengths) not in (1, num_priors):
        raise ConsolidationError(
            f"{len(strengths)} strengths are given for {num_priors} prior(s) at a time; give one "
            "for all or one for each"
        )


def _pinned(model: str, priors: Sequence[str]) -> tuple[str, list[str]]:
    model = pin(model)
    if priors:
        return model, [pin(prior) for prior in priors]
    if Path(model).exists():
        raise ConsolidationError(
            f"model {model} is a folder, from which no card leads to its priors; give --priors"
        )
    return model, [tier.prior for tier in walk_tiers(model)][::-1]


def _accuracy(learned: Learned, tasks: Sequence[TaskData]) -> float | None:
    return fmean(learned.accuracy(task.test) for task in tasks) if tasks else None
