import sys
import warnings

import pytest

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import Comparison, Outcome, require_matplotlib

NONE = Outcome("none", [], None, 0.4, 0.7)
KFC = Outcome("kfc", [0.5], 0.1, 0.6, 0.69)

PICTURES = {
    "usual": Comparison("articles", "patients", 0.8, [NONE, KFC]),
    "one method": Comparison("articles", "patients", 0.8, [KFC]),
    "no method": Comparison("articles", "patients", 0.8, []),
    "old task not measured": Comparison(
        "articles", "patients", None, [Outcome("none", [], None, None, 0.7)]
    ),
    "all zero": Comparison("articles", "patients", 0.0, [Outcome("none", [], None, 0.0, 0.0)]),
    "perfect": Comparison("articles", "patients", 1.0, [Outcome("none", [], None, 1.0, 1.0)]),
    "one name twice": Comparison("articles", "patients", 0.8, [KFC, KFC]),
    "dollars": Comparison(r"$\nosuch$", "a_b^c$", 0.8, [Outcome("$x", [], None, 0.1, 0.2)]),
    "many long names": Comparison(
        " + ".join(["articles"] * 9),
        "",
        0.8,
        [Outcome(f"method {i} with a name", [], None, 0.1, 0.2) for i in range(12)],
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_written(name, tmp_path):
    path = tmp_path / "picture.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as limits that are equal
        # This one says that names do not fit, which is true and harmless.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        PICTURES[name].save_figure(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 3000


def test_picture_shows_names_values_and_the_level_before(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "svg.fonttype", "none")
    PICTURES["usual"].save_figure(tmp_path / "picture.svg")
    text = (tmp_path / "picture.svg").read_text("utf-8")
    for expected in ("old task: articles", "new task: patients", "none", "kfc", "before 80.0"):
        assert f">{expected}<" in text
    for value in ("40.0", "60.0", "70.0", "69.0"):
        assert f">{value}<" in text


def test_missing_matplotlib_is_told_in_one_line(monkeypatch):
    require_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConsolidationError, match=r"pip install hf_kfc\[recipes\]"):
        require_matplotlib()
