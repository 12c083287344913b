"""Runs recipes, in this process or in others, and looks at what they leave."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import LAUNCH, free_port

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "recipes" / "data"
TINY = (
    *("--max_train_examples", "64", "--max_validation_examples", "32"),
    *("--max_test_examples", "32", "--num_train_epochs", "1", "--learning_rate", "0.01"),
)
SMALL_CNN = ("--hidden_size", "8", "--vocab_size", "500")
TIMEOUT = 120.0


@dataclass(frozen=True)
class Result:
    """How a recipe ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that tell an error."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@dataclass(frozen=True)
class Recipes:
    """Starts recipes.

    Args:
        cache: Where examples are cached.
        temporary: Where temporary files go.
    """

    cache: Path
    temporary: Path

    def call(self, recipe: str, *arguments: object) -> Result:
        """Run a recipe in this process: its imports are there already."""
        path = ROOT / "recipes" / f"{recipe}.py"
        out, err = io.StringIO(), io.StringIO()
        status: object = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.config.HF_DATASETS_CACHE", self.cache)
            patch.setattr(tempfile, "tempdir", str(self.temporary))
            patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    runpy.run_path(str(path), run_name="__main__")
                except SystemExit as stop:
                    status = stop.code
        if isinstance(status, str):  # what sys.exit prints
            return Result(1, out.getvalue(), f"{err.getvalue()}{status}\n")
        assert isinstance(status, int)
        return Result(status, out.getvalue(), err.getvalue())

    def start(
        self,
        recipe: str,
        *arguments: object,
        launcher: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a recipe in a process of its own, or by a module that starts it.

        Without an environment it cannot reach any Hub.
        """
        script = ["-m", *launcher.split()] if launcher else []
        # Not to be killed alone by a time limit: the launcher ends its workers when terminated.
        process = subprocess.Popen(
            [sys.executable, *script, f"recipes/{recipe}.py", *map(str, arguments)],
            cwd=ROOT,
            env=dict(environment or os.environ | {"HF_HUB_OFFLINE": "1"})
            | {
                "HF_DATASETS_CACHE": str(self.cache),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(self.temporary),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.terminate()
            process.wait(timeout=60)
        return Result(process.returncode, out, err)

    def launch(self, recipe: str, *arguments: object) -> Result:
        """Run a recipe by ``accelerate launch``."""
        return self.start(recipe, *arguments, launcher="accelerate.commands.launch")

    def launch_two(
        self, recipe: str, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> Result:
        """Run a recipe by ``accelerate launch`` in two processes."""
        launcher = f"accelerate.commands.launch {LAUNCH} --main_process_port {free_port()}"
        return self.start(recipe, *arguments, launcher=launcher, environment=environment)

    def leftovers(self) -> list[str]:
        """Names of what lies in the temporary folder and the cache but should be gone."""
        temporary = (path.name for path in self.temporary.iterdir())
        # Of the libraries, not of the recipes.
        own = [
            name for name in temporary if not name.startswith(("torchinductor_", "torchelastic"))
        ]
        return own + [str(path) for path in self.cache.rglob("*.incomplete*") if path.is_dir()]


def content(directory: Path) -> dict[str, str | None]:
    """Map what lies in a folder, hidden or not, to checksums; folders to None."""
    return {
        str(path.relative_to(directory)): None
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
    }
