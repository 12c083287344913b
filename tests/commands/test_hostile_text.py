"""Names in a downloaded prior are somebody else's: none may act on the terminal."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import priors

from hf_kfc import ConsolidationPrior
from hf_kfc.commands.report import Report, Table

HOSTILE = "good\x1b[2J\x9b31m\u202e\nok (verified)\r" + "a" * 5000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior whose every free text is hostile."""
    made = priors.prior()
    text = {"task": HOSTILE, "base_model": HOSTILE, "anchor_metrics": {HOSTILE: 1.0}}
    provenance = replace(made.provenance, **text)
    (block, *others) = made.curvature.blocks
    blocks = (replace(block, name=block.name + HOSTILE), *others)
    folder = tmp_path_factory.mktemp("hostile") / "prior"
    curvature = replace(made.curvature, blocks=blocks)
    ConsolidationPrior(made.anchor, curvature, provenance).save_pretrained(folder)
    return folder


def assert_harmless(text: str) -> None:
    for line in text.splitlines():
        assert line.isprintable()
        assert not line.startswith("ok (verified)")
        assert len(line) < 3000  # of a table; each cell is bounded


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "{hostile}"),
        ("diff", "{hostile}", "{tier}"),
        ("diff", "{tier}", "{hostile}"),
        ("verify", "{hostile}", "{model}"),
        ("audit", "{hostile}"),
        ("compress", "{hostile}", "--dtype", "bfloat16", "--output", "{output}"),
        ("merge", "{hostile}", "{hostile}", "--output", "{output}"),
        ("merge", "{hostile}", "{tier}", "--output", "{output}"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_no_command_prints_what_a_prior_says_as_it_is(tier, run, hostile, tmp_path, words, as_json):
    places = {"hostile": hostile, "tier": tier.prior, "model": tier.model, "output": tmp_path / "o"}
    words = [word.format(**places) for word in words] + ["--json"] * as_json
    result = run(*words)
    assert result.status in (0, 1)
    assert result.out or result.err
    assert_harmless(result.err)
    if as_json and result.out:
        json.loads(result.out)
        assert all(line.isprintable() for line in result.out.splitlines())
    else:
        assert_harmless(result.out)


def test_lines_and_cells_are_escaped_and_bounded():
    table = Table([("name", "n"), (HOSTILE, "1")])
    lines = Report({}, [f"by {HOSTILE}", table, "end"]).text.split("\n")
    assert lines[0].startswith("by good\\x1b[2J\\x9b31m\\u202e\\nok")
    assert len(lines[0]) < 1000
    assert lines[1] == ""
    assert lines[2].split() == ["name", "n"]
    assert len(lines[3]) <= 203
    assert lines[3].endswith("  1")
    assert lines[4:] == ["", "end"]
