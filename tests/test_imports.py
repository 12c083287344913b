"""The arrows between the library's files: none leads from the core to what is built on it."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_ON_IT = ("hf_kfc.ranking", "laboratory", "recipes", "tests")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "hf_kfc").rglob("*.py"))}


def imported(name: str, source: str, *, package: bool) -> set[str]:
    """Return all modules that a file imports, at its top or later, for running or for types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            base = parts[: len(parts) - node.level + package] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{home}.{alias.name}"
                found.add(whole if whole in FILES else home)
    return found


GRAPH = {
    name: imported(name, path.read_text(encoding="utf-8"), package=path.name == "__init__.py")
    for name, path in FILES.items()
}


def test_imports_of_every_form_are_found():
    source = "import a.b\nfrom .x import y\nfrom .. import z\ndef f():\n    from ..u.v import w\n"
    assert imported("p.q.r", source, package=False) == {"a.b", "p.q.x", "p", "p.u.v"}
    assert imported("p.q", source, package=True) == {"a.b", "p.q.x", "p", "p.u.v"}
    source = "from .curvature import operators, Block\nfrom . import errors"
    expected = {"hf_kfc.curvature.operators", "hf_kfc.curvature", "hf_kfc.errors"}
    assert imported("hf_kfc", source, package=True) == expected


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(BUILT_ON_IT)])
def test_the_core_imports_nothing_that_is_built_on_it(name):
    assert not [module for module in GRAPH[name] if module.startswith(BUILT_ON_IT)]


def test_no_files_import_each_other_in_a_circle():
    edges = {name: modules & FILES.keys() for name, modules in GRAPH.items()}
    try:
        list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_importing_the_library_imports_no_extra():
    """Some come with transformers itself where they are installed; those are not ours."""
    code = (
        "import sys, transformers.trainer\n"
        "before = set(sys.modules)\n"
        "import hf_kfc\n"
        "for name in hf_kfc.__all__: getattr(hf_kfc, name)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
        "print(*(name for name in sys.modules if name.startswith('hf_kfc.')))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    added, ours = (set(line.split()) for line in ended.stdout.splitlines()[-2:])
    assert "hf_kfc.training" in ours
    assert not {name for name in ours if name.startswith("hf_kfc.ranking")}
    assert not added & {"evaluate", "sklearn", "scipy", "openpyxl", "matplotlib", "peft", "sphinx"}


def test_the_command_line_answers_without_torch():
    code = "import sys\nfrom hf_kfc.commands import main\ntry:\n    main({})\nexcept SystemExit:\n"
    code += "    assert 'torch' not in sys.modules\n"
    for words in (["--help"], ["estimate", "--help"], ["inspect", "prior", "--nosuch"]):
        ended = subprocess.run(
            [sys.executable, "-c", code.format(words)], check=False, capture_output=True, cwd=ROOT
        )
        assert ended.returncode == 0, ended.stderr
