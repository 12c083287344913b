"""What the stage of a language model takes on its command line."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_kfc.errors import ConsolidationError

from ..engine import ExperimentArguments
from .data import DOMAINS
from .methods import LmMethod

__all__ = ["LmArguments"]


@dataclass(kw_only=True)
class LmArguments(ExperimentArguments):
    """Which model learns what, how, and what is measured."""

    data_dir: str = field(metadata={"help": "Folder of the corpora; evaluation sets in its lm/."})
    methods: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Methods, with numbers after colons."}
    )
    model: str = field(
        default="smollm2",
        metadata={"help": "'smollm2', or folder or Hub name of a causal language model."},
    )
    domain: str = field(
        default="spanish", metadata={"help": "What the model learns.", "choices": list(DOMAINS)}
    )
    steps: int = field(default=300, metadata={"help": "Number of optimizer steps."})
    batch_size: int = field(default=8, metadata={"help": "Rows of an optimizer step."})
    length: int = field(default=256, metadata={"help": "Tokens of a row, at most."})
    learning_rate: float = field(
        default=8e-4, metadata={"help": "Peak of AdamW's, after a tenth of the steps; then to 0."}
    )
    dtype: str = field(
        default="bfloat16",
        metadata={
            "help": "Mixed precision of training and measuring.",
            "choices": ["bfloat16", "float32"],
        },
    )
    device: str = field(
        default="auto",
        metadata={"help": "'cpu' leaves an accelerator alone.", "choices": ["auto", "cpu"]},
    )
    sampled_texts: int = field(
        default=512, metadata={"help": "Texts that the anchor samples, a quarter for the meter."}
    )
    top_k: int = field(default=64, metadata={"help": "Next tokens whose probability is kept."})
    curvature_texts: int = field(default=256, metadata={"help": "Of these for the curvature."})
    probe_batch_size: int = field(default=8, metadata={"help": "Sampled texts of a step."})
    probe_every: int = field(default=1, metadata={"help": "Have probes in every k-th step."})
    damping: float = field(default=0.1, metadata={"help": "Relative damping of the curvature."})
    penalty_every: int = field(
        default=1, metadata={"help": "Have the penalty in every k-th step, at k times its λ."}
    )
    test_rows: int = field(default=256, metadata={"help": "Rows of the domain held out."})
    lambada: int | None = field(default=None, metadata={"help": "Texts of LAMBADA (default: all)."})
    choices: int | None = field(
        default=None, metadata={"help": "Questions of PIQA and of ARC (default: all)."}
    )
    wikipedia: int = field(default=0, metadata={"help": "Articles from the Hub to measure on."})
    answers: int = field(
        default=0, metadata={"help": "Questions of the domain to answer; 0 for its loss alone."}
    )
    work_dir: str | None = field(
        default=None,
        metadata={
            "help": "Keep sampled texts, priors and models here (default: beside --results)."
        },
    )
    keep_models: bool = field(default=False, metadata={"help": "Keep every trained model."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_twice("methods")
        for name in self.methods:
            LmMethod.parse(name)
        for name in ("steps", "batch_size", "length", "probe_batch_size", "test_rows"):
            if getattr(self, name) < 1:
                raise ConsolidationError(f"{name} is {getattr(self, name)}; give at least 1")
