"""Importing ranking waits for nothing that few need, and says which extra is not installed."""

import subprocess
import sys

SLOW = """
import sys
import hf_kfc.ranking
print(sorted({"evaluate", "sklearn", "openpyxl", "matplotlib"} & sys.modules.keys()))
from hf_kfc.ranking import Forgetting, RankingAccuracy
print(RankingAccuracy().compute(predictions=[0, 2], references=[0, 1]))
"""
MISSING = """
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *args: None if name == "sklearn" else found(name, *args)
import hf_kfc.ranking
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_slow_libraries_are_imported_when_they_are_needed():
    done = run(SLOW)
    assert done.stdout.splitlines() == ["[]", "{'accuracy': 0.5}"], done.stderr


def test_a_missing_library_names_the_extra():
    done = run(MISSING)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: hf_kfc.ranking needs sklearn; install them by pip install "
        "'hf_kfc[ranking]'"
    )
