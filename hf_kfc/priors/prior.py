"""A prior: where the parameters were after a task, and how much moving them would hurt it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..curvature import (
    Curvature,
    CurvatureArguments,
    estimate_curvature,
    identity_curvature,
    unwrapped,
)
from ..curvature.objective import (
    Forward,
    PositionMask,
    default_forward,
    default_position_mask,
)
from ..errors import PriorError
from ..precision import wide_dtype
from ..probes import Probes, TokenTable
from .base import BasePrior
from .export import export_covariances as _export_covariances
from .merge import merged_parts
from .privacy import MIN_EXAMPLES, kept_tokens
from .provenance import Provenance
from .push import push_to_hub as _push_to_hub
from .reduced import compressed_parts, parts_without
from .store import load
from .store import save_pretrained as _save_pretrained

__all__ = ["ConsolidationPrior"]


class ConsolidationPrior(BasePrior):
    """Anchor θ*, curvature F and provenance of one task: all that a later task needs of it.

    The posterior of the old task is approximated by a Gaussian around θ* with precision N·F
    (Laplace), so that consolidating means adding λ·(θ−θ*)ᵀ F (θ−θ*) to the new task's loss.

    Args:
        anchor: Parameters right after the task, by name.
        curvature: Covers exactly the anchor's names and shapes.
        provenance: Where it comes from.
        probes: Inputs on which the anchor's outputs are kept.

    Attributes:
        source: The commit on the Hub that it was read from; None of a folder or a fresh one.

    Raises:
        PriorError: The parts do not fit each other; all problems are listed.

    Example:
        >>> prior = ConsolidationPrior.from_pretrained("runs/tier1/prior")  # doctest: +SKIP
        >>> trainer = ConsolidationTrainer(model, args, priors=[prior], ...)  # doctest: +SKIP
    """

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        dataset: Any,
        data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
        args: CurvatureArguments | None = None,
        *,
        task: str,
        anchor_metrics: Mapping[str, float] | None = None,
        forward: Forward = default_forward,
        position_mask: PositionMask = default_position_mask,
        checkpoint_dir: str | Path | None = None,
        probes: Probes | None = None,
    ) -> Self:
        """Make the prior of a model that has just learnt a task.

        Args:
            model: The model at its anchor.
            dataset: The task's training examples.
            data_collator: Makes a batch of a list of examples.
            args: How the curvature is estimated.
            task: Short name of the task.
            anchor_metrics: The model's metrics on the task.
            forward: Runs the model on a batch; the default expects a ``logits`` output.
            position_mask: Says which positions of a batch count: one mask for all layers, or masks
                by glob patterns of modules' names.
            checkpoint_dir: A folder of this estimate alone, where its progress is kept, so that the
                same call goes on after a kill; deleted at the end.
            probes: That the prior is to carry, made with the same model.

        Raises:
            PriorError: The probes are of another model.
            CurvatureError: The model, the data or the loss is one of which no curvature can be
                estimated, or the checkpoint is of another estimate.
        """
        args, model = CurvatureArguments() if args is None else args, unwrapped(model)
        if not isinstance(args, CurvatureArguments):
            raise PriorError(f"args is a {type(args).__name__}; give CurvatureArguments")
        if not isinstance(anchor_metrics, Mapping | None):
            raise PriorError(f"anchor_metrics is a {type(anchor_metrics).__name__}; give a dict")
        metrics = {
            name: value.tolist() if hasattr(value, "tolist") else value  # a number of numpy
            for name, value in (anchor_metrics or {}).items()
        }
        origin = Provenance(
            task,
            **_origin(model),
            curvature=args.curvature,
            labels=str(args.labels),
            sharing=str(args.sharing),
            min_token_examples=args.min_token_examples,
            anchor_metrics=metrics,
        )
        if problems := origin.problems():  # before the work, not after it
            raise PriorError(f"no prior of task '{task}' can be made: {'; '.join(problems)}")
        curvature = estimate_curvature(
            model,
            dataset,
            data_collator,
            args,
            forward=forward,
            position_mask=position_mask,
            checkpoint_dir=checkpoint_dir,
        )
        provenance = replace(origin, num_examples=len(dataset))
        return cls(_anchor(model, curvature), curvature, provenance, probes)

    @classmethod
    def l2(cls, model: nn.Module, *, task: str, ignore: Sequence[str] = ()) -> Self:
        """Make the data-free prior F = I: L2 towards the model's present parameters.

        Args:
            model: The model at its anchor.
            task: Short name of the task it has learnt.
            ignore: Parameters left to move freely: patterns of their names, or modules' paths.
        """
        model = unwrapped(model)
        curvature = identity_curvature(model, ignore)
        return cls(_anchor(model, curvature), curvature, Provenance(task, **_origin(model)))

    @classmethod
    def merge(
        cls,
        priors: Sequence[ConsolidationPrior],
        *,
        rank: int = 4,
        weights: Sequence[float] | None = None,
        damping: float = 0.1,
    ) -> Self:
        """Make one prior of several, whose penalty costs as much as ``rank`` of theirs.

        Its F is near to Σ_i w_i F_i, and its anchor is where the priors' penalties have their
        common minimum, θ̄ with F θ̄ = Σ_i w_i F_i θ_i: up to a constant, (θ−θ̄)ᵀF(θ−θ̄) is
        Σ_i w_i (θ−θ_i)ᵀF_i(θ−θ_i). With up to ``rank`` Kronecker priors, or diagonal ones, that is
        exact. Otherwise ``provenance.approximation_errors`` tells how near F is, and at the mean of
        the anchors the penalty's gradient is exact. By default the Bayesian strength of the result
        gives Σ_i λ_i F_i with those of the priors.

        Of embeddings, tokens that a prior does not cover count as never seen by it. In how many
        examples a token was seen, and how many the curvature is of, is the most that any one prior
        tells: they may be of the same examples, which added up would be published as if there were
        more of them.
        Directions in which no prior has curvature keep the mean of the anchors.

        The priors' probes are left out, with a warning: each is of its own anchor. A trainer takes
        them beside the merged prior.

        Args:
            priors: Of the same parameters: all Kronecker, all diagonal or all L2. They may be
                merged or compressed ones.
            rank: The most Kronecker products that a layer's F may have.
            weights: w_i; by default each prior's share of the training examples.
            damping: The one that the prior will be used with; its anchor depends on it.

        Raises:
            PriorError: The priors cover other parameters or have no common sum, or weights are
                missing; it says which and where.

        Example:
            >>> old = ConsolidationPrior.merge([tier1, tier2], rank=1)  # doctest: +SKIP
            >>> trainer = ConsolidationTrainer(model, args, priors=[old], ...)  # doctest: +SKIP
        """
        given: Any = () if priors is None else priors
        all_given = list(given) if isinstance(given, Iterable) else [given]
        return cls(*merged_parts(all_given, rank, weights, damping))

    def compress(self, *, rank: int | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return this prior with its curvature in fewer bytes; the anchor stays as it is.

        Layers that share a factor still do, and ``provenance.approximation_errors`` tells by how
        much F of each block is off.

        Args:
            rank: Of Kronecker factors, which become this many eigenpairs and a diagonal where that
                takes less; None keeps them whole.
            dtype: How the curvature is stored: ``torch.bfloat16`` or ``torch.float32``. The
                penalty is computed in float32 or wider all the same.

        Raises:
            PriorError: Nothing is asked for, or a block's curvature has no such form.

        Example:
            >>> small = prior.compress(rank=64, dtype=torch.bfloat16)  # doctest: +SKIP
            >>> small.save_pretrained("runs/tier1/prior-small")  # doctest: +SKIP
        """
        return type(self)(*compressed_parts(self, rank, dtype), self.probes)

    def with_probes(self, probes: Probes | None) -> Self:
        """Return this prior with probes, or without any.

        Args:
            probes: Made with the model that the prior is of; None leaves them out.

        Raises:
            PriorError: They are of another model.

        Example:
            >>> probes = Probes.from_dataset(model, public_texts, collator)  # doctest: +SKIP
            >>> prior.with_probes(probes).save_pretrained("runs/tier1/prior")  # doctest: +SKIP
        """
        return type(self)(self.anchor, self.curvature, self.provenance, probes)

    def without(self, patterns: str | Sequence[str]) -> Self:
        """Return this prior without some blocks, whose parameters are ignored: they move freely.

        For a next task that gives them another shape or another meaning: a head of new labels, an
        embedding to which tokens were added. Such a model may decide something else than the
        anchor did, so the probes are left out too, with a warning.

        Args:
            patterns: Names of blocks or of their parameters, with ``*``, ``?`` and ``[...]``, as
                ``"classifier"`` or ``"*.word_embeddings"``.

        Raises:
            PriorError: A pattern matches none, or nothing is left.

        Example:
            >>> model = AutoModelForSequenceClassification.from_pretrained(
            ...     "runs/tier1", num_labels=5, ignore_mismatched_sizes=True
            ... )  # doctest: +SKIP
            >>> trainer = ConsolidationTrainer(
            ...     model, args, priors=[prior.without("classifier")], ...
            ... )  # doctest: +SKIP
        """
        return type(self)(*parts_without(self, patterns))

    def token_table(self, min_examples: int = MIN_EXAMPLES) -> TokenTable:
        """Return how often tokens stood in the task's examples, as the curvature tells it.

        A of the largest embedding is the frequency of each token. Of which one follows which a
        prior knows nothing.

        Args:
            min_examples: Tokens that fewer examples have are left out.

        Raises:
            PriorError: No embedding tells it, or not in how many examples its tokens stood.

        Example:
            >>> probes = Probes.from_tokens(
            ...     model, prior, collator, count=1000, length=32
            ... )  # doctest: +SKIP
        """
        known = [(b, b.operator.input_moment()) for b in self.curvature.blocks if b.is_embedding]
        tables = [(block, moment) for block, moment in known if moment is not None]
        if not tables:
            raise PriorError(
                f"prior of task '{self.task}' has no embedding that tells the frequency of tokens; "
                "give a TokenTable, or None for uniform tokens"
            )
        block, moment = max(tables, key=lambda table: next(iter(table[0].shapes.values()))[0])
        kept = kept_tokens(self, block, min_examples)
        weights = dict(zip(block.tokens[kept].tolist(), moment[kept].tolist(), strict=True))
        return TokenTable({t: w for t, w in weights.items() if w > 0}, {}, min_examples)

    def check(self, model: nn.Module) -> None:
        """Make sure that the prior can consolidate a model.

        Args:
            model: The model to be trained.

        Raises:
            PriorError: A covered parameter is missing or has another shape, or a trainable
                parameter is neither covered nor ignored; all are listed.
        """
        model = unwrapped(model)
        parameters = dict(model.named_parameters())
        problems = []
        for name, shape in self.curvature.parameters.items():
            if name not in parameters:
                problems.append(f"the model has no parameter {name}")
            elif tuple(parameters[name].shape) != shape:
                found = list(parameters[name].shape)
                problems.append(f"{name} has shape {found}, the prior's has {list(shape)}")
        known = self.curvature.parameters.keys() | set(self.curvature.ignored)
        problems += [
            f"the prior knows nothing of {name}"
            for name, parameter in parameters.items()
            if parameter.requires_grad and name not in known
        ]
        if problems:
            raise PriorError(
                f"prior of task '{self.task}' does not fit {type(model).__name__}; leave what is "
                f"meant to differ out of it with prior.without([...]): {'; '.join(problems)}"
            )

    # Written as functions of a prior, each in a file of its own.
    save_pretrained = _save_pretrained
    export_covariances = _export_covariances
    push_to_hub = _push_to_hub

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        layers: str | Sequence[str] | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Read a prior from a folder or from the Hub.

        Nothing in it is executed, and what does not fit its description is refused.

        Args:
            name_or_path: A folder that :meth:`save_pretrained` made, or a repository:
                ``"org/name"`` or ``"org/name@revision"``.
            revision: Branch, tag or hash, of a repository; by default the main branch.
            layers: Patterns of block names, as ``"bert.encoder.*"``: only those blocks are read,
                from the files that hold them, and the parameters of the others are ignored. The
                probes are not read then.
            token: Access token; by default the one logged in with.
            cache_dir: Where downloads are kept; by default the cache of the Hub's client.

        Raises:
            PriorError: Files are missing, damaged or out of reach, or their content is not a
                valid prior (names, shapes, dtypes, non-finite values, asymmetric or indefinite
                factors); all problems of one kind are listed.
        """
        return load(cls, name_or_path, revision, layers, token, cache_dir)


def _anchor(model: nn.Module, curvature: Curvature) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    covered = [block.covered(parameters) for block in curvature.blocks]
    return {
        name: value.detach().to(wide_dtype(value.dtype), copy=True)
        for own in covered
        for name, value in own.items()
    }


def _origin(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {
        "base_model": getattr(config, "_name_or_path", "") or type(model).__name__,
        "base_revision": getattr(config, "_commit_hash", None),
    }
