"""Text of others: what reaches a terminal, a log or an error of it."""

import pickle

import pytest

from hf_kfc.errors import HfKfcError, PriorError
from hf_kfc.text import printable

HOSTILE = {
    "clears the screen": ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
    "a title for the window": ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
    "an eight-bit escape": ("\x9b31m", r"\x9b31m"),
    "a line of its own": ("x\n(verified)", r"x\n(verified)"),
    "another kind of line": ("x\u2028y\x85z\x0b", r"x\u2028y\x85z\x0b"),
    "overwrites the line": ("bad\rgood", r"bad\rgood"),
    "erases a character": ("bad\b\b\b", r"bad\x08\x08\x08"),
    "turns the direction": ("a\u202eb\u2066", r"a\u202eb\u2066"),
    "cannot be seen": ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
    "half a character": ("\ud800", r"\ud800"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_not_printable_becomes_an_escape(kind: str) -> None:
    text, shown = HOSTILE[kind]
    assert printable(text) == shown
    assert shown.isprintable()
    shown.encode("utf-8")
    assert str(PriorError(f"task '{text}'")) == f"task '{shown}'"


def test_what_is_printable_stays() -> None:
    for text in ("", "Tâche №1: 結合, 10 %", r"a\x1b", "x  y"):
        assert printable(text) == text
    assert printable("10\u202f000\u00a0€") == "10 000 €"
    assert printable(None) == "None"


@pytest.mark.parametrize("limit", [40, 100, 999])
@pytest.mark.parametrize("length", [101, 1000, 10**6])
def test_of_a_flood_both_ends_are_shown(length: int, limit: int) -> None:
    if length <= limit:
        assert printable("a" * length, limit) == "a" * length
        return
    shown = printable("b" + "a" * (length - 2) + "c", limit)
    assert len(shown) <= limit
    assert shown[0] == "b"
    assert shown[-1] == "c"
    left_out = int(shown.partition("… ")[2].partition(" ")[0])
    assert shown.count("a") + 2 + left_out == length + shown[1:-1].count("characters") * 2


def test_no_error_is_a_flood_or_has_two_lines() -> None:
    error = HfKfcError("begin\n" + "; ".join(map(str, range(10_000))) + "; what to do")
    assert len(str(error)) < 1000
    assert str(error).startswith(r"begin\n")
    assert str(error).endswith("what to do")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(HfKfcError()) == ""
