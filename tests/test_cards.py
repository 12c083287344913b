import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kfc.cards import metadata_of, render, with_section
from hf_kfc.errors import HfKfcError

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(
    lambda text: text.replace("<!--", "")
)


@given(words, words, words, words)
def test_a_section_is_replaced_and_nothing_else_changes(before, after, old, new):
    card = with_section(f"{before}\n", "one", old) + after
    card = with_section(card, "two", "second")
    changed = with_section(card, "one", new)
    block = f"<!-- begin one -->\n{new.strip()}\n<!-- end one -->"
    assert changed == card.replace(f"<!-- begin one -->\n{old.strip()}\n<!-- end one -->", block)
    assert with_section(changed, "one", new) == changed
    assert changed.count("begin one") == changed.count("begin two") == 1


def test_a_missing_value_is_an_error_and_markdown_stays_as_it_is():
    with pytest.raises(jinja2.UndefinedError, match="config_name"):
        render("dataset_card.md", repository="a/b")
    assert '"a/<b>"' in render("dataset_card.md", repository="a/<b>", config_name="c")


def test_metadata_are_text_lists_and_mappings_whatever_they_look_like():
    card = "---\na: 1\nb: [x, null]\nc: {d: 2026-01-01}\ne: !!python/object:os.x {}\n---\n# Card"
    assert metadata_of(card) == {
        "a": "1",
        "b": ["x", "null"],
        "c": {"d": "2026-01-01"},
        "e": {},
    }
    assert metadata_of("# A card\n---\na: 1\n---\n") == metadata_of("") == {}
    assert metadata_of("---\r\na: ü\r\n---\r\n") == {"a": "ü"}


@pytest.mark.parametrize(
    "metadata",
    ["- a", "a: [", "a: " + "[" * 3000, "a: &a [*a]", "? [a]\n: b", "a: \x00", "a: " + "x" * 2**18],
)
def test_metadata_that_cannot_be_read(metadata):
    with pytest.raises(HfKfcError) as error:
        metadata_of(f"---\n{metadata}\n---\n")
    assert "\n" not in str(error.value)
