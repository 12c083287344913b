"""The pages hold whatever text, ask for no other file, and their pictures say what tables do."""

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from ranking.made_up_answers import draw

from hf_kfc.ranking import Answers, find_regressions, score_answers

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=//evil.example/x onerror=alert(1)>&amp;\u202e\x1b[2J"
)
PAGES = {
    "scores": lambda old, new: score_answers(old, Counter(C1=20)),
    "regressions": find_regressions,
}


class Page(HTMLParser):
    """What a browser would make of a page: tags, attributes and text; every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = Counter(), [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *own) for own in attrs]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *own) for own in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def hostile(answers: Answers) -> Answers:
    rows = [
        replace(
            row, mention=HOSTILE, left=HOSTILE, document=row.document + HOSTILE, types=(HOSTILE,)
        )
        for row in answers.rows
    ]
    return Answers(rows, {"C1": HOSTILE}, {HOSTILE: 3})


@pytest.mark.parametrize("kind", PAGES)
def test_whatever_others_wrote_is_text(kind):
    told = PAGES[kind](hostile(draw(1)), hostile(draw(2)))
    page = Page(told.html(title=HOSTILE))
    plain = Page(PAGES[kind](draw(1), draw(2)).html())
    assert not page.open
    assert "alert(1)</script>" in page.text
    assert page.tags.keys() <= plain.tags.keys() | {"ul", "li"}
    assert not page.tags["script"] and not page.tags["img"]
    assert not {own[1] for own in page.attributes} & {"href", "src", "onerror", "xlink:href"}
    assert "\x1b" not in page.text and "\u202e" not in page.text
    policy = [own[2] for own in page.attributes if own[1] == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policy
    assert "url(" not in told.html() and "@import" not in told.html()


def numbers(page: Page, *names: str, unit: str = "") -> list[float]:
    """The values of attributes, in order: those with the unit, or those without any."""
    values = [value for _, name, value in page.attributes if name in names]
    return [float(v.removesuffix("%")) for v in values if v.endswith("%") == bool(unit)]


@pytest.mark.parametrize("kind", PAGES)
def test_pictures_stay_in_their_frames(kind):
    places = numbers(Page(PAGES[kind](draw(1), draw(2)).html()), "x1", "x2", "cx", "x", unit="%")
    assert places
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)


def test_pictures_say_what_the_table_says():
    told = score_answers(draw(1))
    page = Page(told.html())
    estimates = [*told.overall.values(), *told.by_type.values()]
    assert numbers(page, "cx", unit="%") == pytest.approx([100 * own.value for own in estimates])
    heights = [272 - 260 * right for _, right, _ in told.bins]
    assert numbers(page, "cy") == pytest.approx(heights)
    titles = re.findall(r"(\d+) mentions: probability", told.html())
    assert sum(map(int, titles)) == 200


def test_every_flip_is_shown_with_what_stands_around_it():
    old, new = draw(1), draw(2)
    found = find_regressions(old, new)
    page = Page(found.html())
    assert page.tags["mark"] == len(found.lost) + len(found.won)


def test_little_is_a_page_too():
    little = {"types": (), "gold": "C1", "candidates": (), "probability": None, "predicted": "C1"}
    rows = [replace(row, **little) for row in draw(1, 3).rows]
    assert "accuracy" in score_answers(Answers(rows)).html()
    assert "0 were right" in find_regressions(Answers(rows), Answers(rows)).html()
