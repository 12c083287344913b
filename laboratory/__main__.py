"""The laboratory: experiments that compare methods, and what is made of their results.

    accelerate launch -m laboratory permutations --data_dir data --results runs/cnn.jsonl
    python -m laboratory report --results runs/cnn.jsonl --output_dir runs/report

Commands, each with its own --help:

    grid            methods, damping, strengths and seeds on one pair of tasks
    permutations    tiers 1 to 3 over all permutations of tasks
    stream          a model that is updated every period with that period's data alone
    lm              a pretrained language model learns a domain and keeps its general ability
    report          tables, verdict and pictures of permutations and of a stream
    toys            three computations that show what the curvatures are
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import HfKfcError
from hf_kfc.ranking import ScriptParser

from . import grid, lm, permutations, stream, toys
from .arguments import DataArguments, LearningArguments, RankerArguments
from .engine import Experiment, run
from .methods import methods_help
from .report import ReportArguments, page, run_report
from .toys import ToyArguments, run_toys

__all__ = ["COMMANDS", "main"]

_METHODS = f"\nMethods, with a number after a colon:\n\n{methods_help()}"
_LM_METHODS = methods_help(lm.LM_METHODS)
_SETUP = (RankerArguments, DataArguments, LearningArguments, CurvatureArguments)


def _runs(experiment: type[Experiment]) -> Callable[..., None]:
    return lambda *arguments: run(experiment(*arguments))


COMMANDS: dict[str, tuple[Callable[..., None], tuple[Any, ...], str]] = {
    "grid": (_runs(grid.Grid), (grid.GridArguments, *_SETUP), str(grid.__doc__)),
    "permutations": (
        _runs(permutations.Permutations),
        (permutations.PermutationArguments, *_SETUP),
        f"{permutations.__doc__}{_METHODS}",
    ),
    "stream": (
        _runs(stream.Stream),
        (stream.StreamArguments, *_SETUP),
        f"{stream.__doc__}{_METHODS}",
    ),
    "lm": (
        lm.run_lm,
        (lm.LmArguments,),
        f"{lm.stage.__doc__}\nMethods, with a number after a colon:\n\n{_LM_METHODS}",
    ),
    "report": (run_report, (ReportArguments,), str(page.__doc__)),
    "toys": (run_toys, (ToyArguments,), str(toys.__doc__)),
}
"""What each command calls, what it takes, and the text of its help."""


def main() -> None:
    """Run the command that the command line names.

    Raises:
        SystemExit: With status 1 and one line on stderr for the library's own errors, 2 for a
            command or arguments that do not parse.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__)  # noqa: T201
        raise SystemExit(0)
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: unknown command '{name}'; choose from {known}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    call, classes, text = COMMANDS[name]
    sys.argv = [f"python -m laboratory {name}", *sys.argv[2:]]  # as help and results are to tell it
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        call(*ScriptParser(*classes, description=text).parse())
    except HfKfcError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
