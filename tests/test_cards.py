import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kfc.cards import render, with_section

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
