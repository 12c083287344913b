"""What a script for the command line needs beside the library: readable help, and all processes."""

from __future__ import annotations

import logging
import math
import os
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from ..commands.loading import load_config, loading
from ..errors import ConsolidationError, HfKfcError
from .cnn import CnnConfig

__all__ = ["LearningArguments", "ScriptParser", "check_processes"]

logger = logging.getLogger(__name__)

_CNN_RATE, _ENCODER_RATE = 3e-3, 5e-5


@dataclass
class LearningArguments:
    """How a script trains: fields of ``TrainingArguments``, with defaults of a small ranker.

    Example:
        >>> learning = LearningArguments(num_train_epochs=3)
        >>> learning.settle(None)  # for a new CNN
        >>> arguments = TrainingArguments("runs/tier1", **asdict(learning))  # doctest: +SKIP
    """

    num_train_epochs: float = field(
        default=5.0, metadata={"help": "Passes over the training examples."}
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate of AdamW, decaying linearly to 0 (default: "
            f"{_CNN_RATE} of a CNN, {_ENCODER_RATE} of a pretrained encoder, which a CNN's would "
            "destroy)."
        },
    )
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Training examples of a process in one pass."}
    )
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Examples of a process in one pass when measuring."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Passes whose gradients make one optimizer step."}
    )
    logging_steps: int = field(default=50, metadata={"help": "Optimizer steps between two logs."})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 mixed precision."})
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Train on the CPU (default: where there is no accelerator)."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and dropout."})

    def __post_init__(self) -> None:
        for own in fields(self)[:-3]:
            value = getattr(self, own.name)
            if value is not None and not 0 < value < math.inf:
                raise ConsolidationError(f"{own.name} is {value}; give a positive number")
        if not 0 <= self.seed < 2**32:
            raise ConsolidationError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")

    def settle(self, model: str | None) -> None:
        """Choose the learning rate that suits a ranker, unless one is given.

        Args:
            model: Folder or repository of the ranker or encoder to begin from; None: a new CNN.

        Raises:
            HfKfcError: The model has no configuration, or it is out of reach.
        """
        if self.learning_rate is None:
            kind = CnnConfig.model_type
            if model is not None:
                where = "the folder of a model, or the name of a Hub repository"
                with loading(f"model '{model}'", where, HfKfcError):
                    kind = load_config(model).model_type
            self.learning_rate = _CNN_RATE if kind == CnnConfig.model_type else _ENCODER_RATE
            logger.info("learning_rate is %s, as suits %s", self.learning_rate, model or "a CNN")


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the script's own text as it is and shows defaults that the help does not tell."""

    def _get_help_string(self, action: Action) -> str | None:
        told = action.default is None or "(default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


class ScriptParser(HfArgumentParser):
    """``HfArgumentParser`` with readable help, which also counts the processes.

    Args:
        *dataclasses: What to fill from the command line.
        description: The script's docstring, shown as it is by ``--help``.
        **defaults: Defaults that differ from those of the dataclasses.

    Example:
        >>> parser = ScriptParser(DataArguments, description=__doc__, dataset="prepared/mine")
        >>> (data,) = parser.parse()  # doctest: +SKIP
    """

    def __init__(self, *dataclasses: Any, description: str | None = None, **defaults: Any) -> None:
        super().__init__(dataclasses, description=description, formatter_class=_Help)
        self.set_defaults(**defaults)
        for action in self._actions:
            action.required &= action.dest not in defaults

    def parse(self) -> tuple[Any, ...]:
        """Return the filled dataclasses, in the order in which they were given.

        Raises:
            HfKfcError: A value is out of its range, or fewer processes run than were asked for.
            SystemExit: The command line does not parse.
        """
        *filled, unknown = self.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        check_processes()
        return tuple(filled)


def check_processes() -> None:
    """Make sure that as many processes run as ``accelerate launch`` was asked for.

    Raises:
        ConsolidationError: There are fewer, or more.
    """
    asked = os.environ.get("WORLD_SIZE")
    if asked is not None:
        # accelerate's own default takes several processes without an accelerator for single ones.
        started = PartialState(cpu=not torch.accelerator.is_available()).num_processes
        if started != int(asked):
            raise ConsolidationError(
                f"{asked} processes were asked for and {started} run; start the script again with "
                "as many as there are devices"
            )
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        # Where accelerate is asked for several processes it sets the address, but without
        # --multi_gpu it then starts a single one (accelerate#2741).
        raise ConsolidationError(
            "several processes were asked for and one was started; on GPUs and CPUs alike, launch "
            "with --multi_gpu --num_processes N --num_machines 1"
        )
