"""``ConsolidationConfig``: how strongly old tasks are held on to, beside any training arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import hf_hub_download

from ..errors import ConsolidationError
from ..files import read_bounded
from ..hub import hub_errors_as
from ..values import is_number, is_whole

__all__ = ["CONFIG_NAME", "PENALTY_DTYPES", "ConsolidationConfig", "PenaltySettings"]

CONFIG_NAME = "consolidation_config.json"
_MOST_BYTES = 2**20
PENALTY_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""What matrices are multiplied in; float32 means the parameters' own if that is wider."""


class Strengths(list[float]):
    """A list of strengths, made of a list or of one number.

    A hyperparameter search casts what it suggests to the type of the former value.
    """

    def __init__(self, values: Any = ()) -> None:
        values = _plain(values)
        is_one = isinstance(values, str | Mapping) or not isinstance(values, Iterable)
        super().__init__(map(_plain, [values] if is_one else values))


def _is_size(value: Any) -> bool:
    return is_number(value) and value >= 0


def _are_patterns(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value))


_SIZE = "a number ≥ 0", _is_size
_COUNT = "a whole number ≥ 1", lambda value: is_whole(value) and value >= 1
_PATTERNS = "a list of patterns", _are_patterns
_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "strengths": (
        "a list of numbers ≥ 0, one for all priors or one for each",
        lambda value: value is None or all(map(_is_size, value)),
    ),
    "damping": _SIZE,
    "penalty_dtype": ("one of " + ", ".join(PENALTY_DTYPES), tuple(PENALTY_DTYPES).__contains__),
    "penalty_every": _COUNT,
    "added_rows": _PATTERNS,
    "ignore": _PATTERNS,
    "probe_weight": _SIZE,
    "probe_temperature": (
        "a number from 0.1 to 10",
        lambda value: _is_size(value) and 0.1 <= value <= 10,
    ),
    "probe_batch_size": _COUNT,
    "probe_every": _COUNT,
    "probe_held_out": ("a share ≥ 0 and below 1", lambda value: _is_size(value) and value < 1),
    "forgetting_every": ("a whole number ≥ 0", lambda value: is_whole(value) and value >= 0),
    "forgetting_budget": (
        "a number above 0, or None",
        lambda value: value is None or (_is_size(value) and value > 0),
    ),
}
"""What each setting may be, in words and as a check."""


def _setting(default: Any, text: str, **more: Any) -> Any:
    """Return a field with its help; what else there is is argparse's."""
    return field(default=default, metadata={"help": text, **more})


@dataclass
class PenaltySettings:
    """What ``ConsolidationConfig`` and ``ConsolidationArguments`` have in common."""

    strengths: list[float] | None = _setting(  # noqa: RUF009 - it is a field
        None,
        "Strength λ of the penalty, one number for all priors or one for each (default: the "
        "Bayesian value N_old / (2 N_new)).",
    )
    damping: float = _setting(
        0.1,
        "Relative damping of the curvature; 0 trusts it even in directions the old data never "
        "used.",
    )
    penalty_dtype: str = _setting(
        "float32",
        "Dtype of the products with the curvature: 'float32', or 'bfloat16', which is faster and "
        "off by at most a hundredth of ‖F‖·‖Δ‖ in each layer.",
        choices=list(PENALTY_DTYPES),
    )
    penalty_every: int = _setting(
        1, "Put the penalty in every k-th optimizer step only, at k times its strength."
    )
    added_rows: list[str] | None = _setting(  # noqa: RUF009
        None,
        "Parameters of a head that has got more rows since the prior was made: the first rows are "
        "held, the new ones are free.",
    )
    probe_weight: float = _setting(
        1.0,
        "Weight of KL(earlier model || this one) on probes, in nats; 0 only measures it. Without "
        "probes it means nothing.",
    )
    probe_temperature: float = _setting(
        1.0,
        "Temperature of that KL, times its square: above 1 also scores count that hardly change a "
        "probability.",
    )
    probe_batch_size: int = _setting(
        32, "Probes of an optimizer step, over all processes and earlier tasks together."
    )
    probe_every: int = _setting(
        1, "Put probes in every k-th optimizer step only, at k times their weight."
    )
    probe_held_out: float = _setting(
        0.2,
        "Share of the probes that is not trained on and measures what is forgotten.",
    )
    forgetting_every: int = _setting(
        50,
        "Optimizer steps between two measurements of what is forgotten; 0 measures before and "
        "after the training only.",
    )
    forgetting_budget: float | None = _setting(
        None,
        "Nats of each earlier task's KL that may be forgotten: strengths and probe_weight then "
        "only say where a rule starts that sets them while training.",
    )

    def __post_init__(self) -> None:
        for own in fields(self):
            setattr(self, own.name, _plain(getattr(self, own.name)))
        if self.strengths is not None:
            self.strengths = Strengths(self.strengths)
        for name, (wanted, is_right) in _RANGES.items():
            if hasattr(self, name) and not is_right(value := getattr(self, name)):
                raise ConsolidationError(f"{name} {value!r} is not {wanted}; correct `{name}`")


@dataclass
class ConsolidationConfig(PenaltySettings):
    """How strongly old tasks are held on to, and what is left free; given beside any arguments.

    Args:
        strengths: λ of each prior in ``loss + Σ_i λ_i (θ−θ*_i)ᵀ F_i (θ−θ*_i)``; one number for
            all priors or one for each. The default is the Bayesian value N_old / (2·N_new), N_new
            being what the new loss is a mean over: examples, or labelled tokens.
        damping: ε ≥ 0 of every operator: for Kronecker factors
            (A + ε·tr(A)/p·I) ⊗ (G + ε·tr(G)/q·I), for the others ε times their mean diagonal.
        penalty_dtype: What the products with the curvature are computed in. ``"bfloat16"`` rounds
            factors and Δ to 8 binary digits and keeps float32 in sums, values and gradients: F·Δ
            is off by at most about 1 % of ‖F‖·‖Δ‖. That is 0.2 to 0.5 % of F·Δ itself for a
            random Δ, and more for one along directions of little curvature.
        penalty_every: k: the penalty is in every k-th optimizer step, the k-th first, at k times
            its strength. Its gradient then is the same in the mean, at 1/k of the cost; the at most
            k − 1 steps after the last one have none.
        added_rows: Parameters with more rows (of their first dimension) than a prior's, as glob
            patterns or module paths: the first rows are held, the new ones are free. Embeddings
            and output embeddings with added tokens need not be listed.
        probe_weight: μ of ``loss + μ Σ_i KL(p_i ‖ p)``, the mean over the decisions of a batch of
            the i-th earlier task's probes, in nats: p_i is what the model of that task said, p what
            this one says, both without dropout. With 0 it is measured only, and the training is
            bit for bit the one without probes.
        probe_temperature: T of T²·KL(p_i^{1/T} ‖ p^{1/T}) in its place, both scaled to sum to 1
            (Hinton et al. 2015, arXiv:1503.02531). Where p_i is sure, KL at 1 is flat; the larger T
            is, the more it is half the variance of the differences of all scores, whatever their
            probabilities. Of numbers there is none.
        probe_batch_size: How many probes an optimizer step has, whatever the accumulation, over
            all processes and earlier tasks together; rounded up so that all have equally many.
        probe_every: k: probes are in every k-th optimizer step, the k-th first, at k times their
            weight.
        probe_held_out: Share of each task's probes that is not trained on. Of them at most 256
            measure ``forgetting`` and ``changed_decisions``.
        forgetting_every: Optimizer steps between two of these measurements; there is one before
            and one after the training in any case.
        forgetting_budget: How many nats of each earlier task may be forgotten, on the probes held
            out: a rule multiplies λ and μ of each task by a factor that starts at 1 and is set
            while training (see :class:`~hf_kfc.training.budget.Budget`). None leaves them alone.
        ignore: What the penalty does not hold, though a prior may know it, as a head of new
            labels: glob patterns of parameter names, module paths, or class names of modules. It
            also lets buffers move: a module's running statistics. Where it leaves free a head that
            is another than a prior's, that prior's probes are left out too.

    Raises:
        ConsolidationError: A value out of its range.

    Example:
        >>> config = ConsolidationConfig(strengths=0.5, ignore=["classifier"])
        >>> trainer = ConsolidationTrainer(  # doctest: +SKIP
        ...     model, TrainingArguments("runs/new"), priors=[prior], consolidation=config, ...
        ... )
    """

    ignore: list[str] | None = None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``consolidation_config.json`` to a folder, which is made where there is none.

        Args:
            directory: The folder.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **kwargs: Any) -> Self:
        """Read what :meth:`save_pretrained` wrote to a folder, or to a repository on the Hub.

        Args:
            name_or_path: A folder, or a repository as ``"org/name"``.
            kwargs: Of ``hf_hub_download``, as ``revision`` or ``token``.

        Raises:
            ConsolidationError: The file is missing in the folder, or is no such configuration.
            HubError: The repository has none, or is out of reach.
        """
        file = Path(name_or_path) / CONFIG_NAME
        if not Path(name_or_path).is_dir():
            with hub_errors_as(f"{CONFIG_NAME} of {name_or_path} is not read ({{reason}})"):
                file = Path(hf_hub_download(str(name_or_path), CONFIG_NAME, **kwargs))
        try:
            values = json.loads(read_bounded(file, _MOST_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise ConsolidationError(
                f"{file} cannot be read ({error}); give a folder that save_pretrained made"
            ) from None
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not values.keys() <= known:
            unknown = sorted(values.keys() - known) if isinstance(values, dict) else values
            raise ConsolidationError(
                f"{file} is no {cls.__name__}: unknown {unknown!r:.200}; remove it or update hf_kfc"
            )
        return cls(**values)


def _plain(value: Any) -> Any:
    """Return a number or an array of numpy or torch as Python's, which JSON takes."""
    return value.tolist() if hasattr(value, "tolist") else value
