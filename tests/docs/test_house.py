"""The picture of the house in CONTRIBUTING is true: its arrows are the imports, both ways."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "house.svg"
SVG = "{http://www.w3.org/2000/svg}"
BESIDE = ("laboratory", "recipes", "examples")
SMALL = "small files"  # the modules that stand in hf_kfc itself


def room_of(module: str) -> str | None:
    """The folder that a module belongs to, as the picture names it; None of foreign ones."""
    first, *rest = module.split(".")
    if first in BESIDE:
        return first
    if first != "hf_kfc":
        return None
    folder = rest and (ROOT / "hf_kfc" / rest[0]).is_dir()
    return rest[0] if folder else SMALL


def imported(path: Path) -> Iterator[str]:
    """The modules of this repository that a file imports, also inside of functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "hf_kfc":  # its names are those of packages, or small files
                yield from (public_home(alias.name) for alias in node.names)
            else:
                yield module


def public_home(name: str) -> str:
    """Where a name of ``hf_kfc`` itself really comes from."""
    tree = ast.parse((ROOT / "hf_kfc" / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        alias.name: f"hf_kfc.{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    return homes.get(name, f"hf_kfc.{name}")


def imports() -> set[tuple[str, str]]:
    """(folder, folder that it imports from) of all the code there is."""
    found = set()
    for top in ("hf_kfc", *BESIDE):
        for path in (ROOT / top).rglob("*.py"):
            if path == ROOT / "hf_kfc" / "__init__.py":
                continue  # it names what is public and is no part of any folder
            here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            there = {room_of(module) for module in imported(path)} - {None, here}
            found |= {(here, room) for room in there}
    return found


def reachable(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """All (from, to) with a path along the arrows."""
    paths = set(arrows)
    while True:
        longer = {(a, d) for a, b in paths for c, d in paths if b == c} - paths
        if not longer:
            return paths
        paths |= longer


def drawn() -> tuple[dict[str, tuple[float, ...]], dict[tuple[str, str], tuple[float, ...]]]:
    """Boxes (x, y, width, height) and arrows (x1, y1, x2, y2) of the picture."""
    picture = ElementTree.parse(PICTURE).getroot()
    boxes = {
        box.attrib["id"].replace("-", " "): tuple(
            float(box.attrib[key]) for key in ("x", "y", "width", "height")
        )
        for box in picture.iter(f"{SVG}rect")
        if "id" in box.attrib
    }
    arrows = {}
    for line in picture.iter(f"{SVG}line"):
        points = tuple(float(line.attrib[key]) for key in ("x1", "y1", "x2", "y2"))
        ends = tuple(
            next((name for name, box in boxes.items() if on_edge(box, *point)), "nowhere")
            for point in (points[:2], points[2:])
        )
        arrows[ends] = points
    return boxes, arrows


def on_edge(box: tuple[float, ...], x: float, y: float) -> bool:
    """Whether a point lies on the upper or lower edge of a box."""
    left, top, width, height = box
    return left <= x <= left + width and (abs(y - top) < 1 or abs(y - top - height) < 1)


def test_every_folder_is_in_the_picture():
    folders = {p.parent.name for p in (ROOT / "hf_kfc").glob("*/__init__.py")}
    assert drawn()[0].keys() == folders | {SMALL, *BESIDE}


def test_every_arrow_is_an_import():
    assert drawn()[1].keys() <= imports()


def test_every_import_goes_along_arrows():
    assert imports() <= reachable(set(drawn()[1]))


def test_no_arrow_says_what_others_say():
    arrows = set(drawn()[1])
    spare = {arrow for arrow in arrows if arrow in reachable(arrows - {arrow})}
    assert not spare


def test_all_arrows_go_down():
    for ends, (_, start, _, end) in drawn()[1].items():
        assert end > start, ends


@pytest.mark.parametrize("code", ["from hf_kfc.ranking import x", "import hf_kfc.ranking.cnn"])
def test_an_import_against_the_arrows_would_be_found(code, monkeypatch, tmp_path):
    monkeypatch.setattr(__name__ + ".ROOT", tmp_path)
    for folder in ("curvature", "ranking"):
        (tmp_path / "hf_kfc" / folder).mkdir(parents=True)
    (tmp_path / "hf_kfc" / "__init__.py").touch()
    (tmp_path / "hf_kfc" / "curvature" / "blocks.py").write_text(code)
    assert imports() == {("curvature", "ranking")}
    assert not imports() <= reachable(set(drawn()[1]))


def test_the_picture_is_in_contributing():
    assert re.search(
        r"!\[[^]]+\]\(docs/house\.svg\)", (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    )
