"""Three computations of seconds that show what the curvatures are, and what goes wrong without.

    python -m laboratory toys --output_dir benchmarks/toys

Figures 1 and 2 of McInerney et al. 2021 (arXiv:2111.06012) on generated tasks, and what becomes of
a penalty made of the Hessian. All in float64 and from fixed seeds; results are JSON values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_kfc.files import refuse_foreign
from hf_kfc.ranking import require_matplotlib
from hf_kfc.ranking.comparison import command, versions

from .cnn_fisher import cnn_fisher
from .drawing import save_cnn_fisher_figure, save_hessian_figure, save_two_parameter_figure
from .hessian_lesson import hessian_lesson
from .two_parameters import two_parameters

__all__ = ["ToyArguments", "cnn_fisher", "hessian_lesson", "run_toys", "two_parameters"]

_RESULTS = "results.json"


@dataclass
class ToyArguments:
    """Where the toy results go."""

    output_dir: str = field(
        default="runs/toys", metadata={"help": "Folder for the numbers and the pictures."}
    )


def run_toys(arguments: ToyArguments) -> None:
    """Compute the three toys, and write ``results.json`` and a PNG and an SVG of each.

    Args:
        arguments: Where to.

    Raises:
        HfKfcError: matplotlib is missing, or the folder holds something else.
    """
    require_matplotlib()
    output = Path(arguments.output_dir)
    refuse_foreign(output, _RESULTS)
    results = {
        "two_parameters": two_parameters(),
        "cnn_fisher": cnn_fisher(),
        "hessian_lesson": hessian_lesson(),
    }
    output.mkdir(parents=True, exist_ok=True)
    text = _json_text(results | {"command": command(), "versions": versions()})
    (output / _RESULTS).write_text(text, encoding="utf-8")
    for suffix in ("png", "svg"):
        save_two_parameter_figure(results["two_parameters"], output / f"two_parameters.{suffix}")
        save_cnn_fisher_figure(results["cnn_fisher"], output / f"cnn_fisher.{suffix}")
        save_hessian_figure(results["hessian_lesson"], output / f"hessian_lesson.{suffix}")
    print(f"saved in {output}")  # noqa: T201


def _json_text(values: Mapping[str, Any]) -> str:
    """Write JSON with a list of numbers on one line."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    numbers = re.compile(r"\[([-+.,\deE\s]*)\]")
    return numbers.sub(lambda own: f"[{' '.join(own[1].split())}]", text) + "\n"
