"""Three synthetic medical corpora that overlap and conflict, made from a lexicon and a seed.

- ``articles``: sentences of research abstracts; an ontology of formal headings ("acute nephritis").
- ``notes``: dictated clinical notes; an ontology that names site and side ("Inflammation of
  kidney, left").
- ``patients``: forum posts; an ontology of lay names ("Kidney swelling").

They share most meanings and many words, and disagree as real corpora do. Their preferred names
differ. The same words mean different things: "swelling" is oedema in a note and inflammation in a
post, "chronic" is a course in an article and mere emphasis in a post, and each corpus has its own
dominant reading of "MS". And what decides differs: in articles the context may hold the course
that a mention leaves out, in notes the side, in posts neither matters.

Everything follows from the seed alone, and documents are made one at a time: a corpus of any size
takes the same memory.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, count, islice
from typing import ClassVar, NamedTuple

import datasets

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.builder import CandidateRankingBuilder
from hf_kfc.ranking.corpora.config import SPLITS, RankingConfig
from hf_kfc.ranking.corpora.counts import SplitCounts
from hf_kfc.ranking.licenses import License
from hf_kfc.ranking.problems import Problems
from hf_kfc.ranking.schema import Concept, Mention

from .lexicon import (
    MODIFIERS,
    SYSTEMS,
    Meaning,
    make_groups,
    misspell,
    named_meanings,
)

__all__ = [
    "CORPORA",
    "Entry",
    "SyntheticConfig",
    "SyntheticMedical",
    "make_entries",
    "make_mentions",
    "make_ontology",
]

_SIZES = {"train": 3000, "validation": 600, "test": 1000}
_SIDES = ("left", "right")
# Articles leave a modifier to such words; notes and posts say them in passing.
_CUES = tuple(chain.from_iterable(course.cues for course in MODIFIERS.values()))
_LAY_CUES = tuple(chain.from_iterable(course.lay_cues for course in MODIFIERS.values()))


@dataclass(frozen=True, slots=True)
class Entry:
    """A concept of one corpus's ontology, with what it means.

    Args:
        concept: The ontology's entry.
        meaning: The meaning behind it, shared by the corpora.
        side: ``"left"``, ``"right"``, or ``""`` where the entry names no side.
    """

    concept: Concept
    meaning: Meaning
    side: str


class _Style(NamedTuple):
    """How a corpus writes and names.

    Args:
        modifiers: The modifiers that its ontology tells apart.
        spoken: Register of a mention, with its weight.
        indexed: Register of a synonym in the ontology, with the chance that it is there.
        misspelt: Share of mentions with a wrong spelling.
        implied: Share of mentions that leave their modifier or side to the context.
        neutral: What fills ``{when}`` where the context implies no modifier.
        templates: Sentences with a mention ``{m}``, a word of its organ system ``{cue}``, one of
            its process ``{sign}``, and further slots.
        fillers: Sentences between them.
    """

    modifiers: tuple[str, ...]
    spoken: dict[str, float]
    indexed: dict[str, float]
    misspelt: float
    implied: float
    neutral: tuple[str, ...]
    templates: tuple[str, ...]
    fillers: tuple[str, ...]


_STYLES: dict[str, _Style] = {
    "articles": _Style(
        modifiers=("acute", "chronic", "recurrent"),
        spoken={"formal": 0.34, "plain": 0.22, "latin": 0.14, "initials": 0.18, "clipped": 0.12},
        indexed={"formal": 0.9, "plain": 0.7, "latin": 0.7, "initials": 0.8},
        misspelt=0.02,
        implied=0.4,
        neutral=("in this cohort", "in most patients", "among controls", "in a rat model"),
        templates=(
            "We studied {cue} and {sign} in patients with {m} {when} .",
            "The association of {m} {when} with {cue} and {sign} remains unclear .",
            "In {n} subjects , {sign} predicted {m} {when} independently of {cue} .",
            "{cue} was assessed , and {m} {when} was confirmed by {sign} .",
            "Our results suggest that {sign} mediates {m} {when} via {cue} .",
            "Outcomes of {m} {when} , including {sign} , correlated with {cue} ( p < 0.0{n} ) .",
            "{m} {when} was associated with abnormal {cue} and {sign} .",
            "A randomised trial of {m} {when} showed changes in {cue} but not in {sign} .",
        ),
        fillers=(
            "Further prospective studies are warranted .",
            "Methods : we retrospectively reviewed {n} consecutive records .",
            "These findings were reproduced in an independent cohort .",
        ),
    ),
    "notes": _Style(
        modifiers=("acute", "chronic"),
        spoken={"clipped": 0.36, "initials": 0.18, "formal": 0.2, "plain": 0.26},
        indexed={"formal": 0.8, "clipped": 0.8, "initials": 0.8, "plain": 0.6},
        misspelt=0.08,
        implied=0.6,
        neutral=("x 3d", "x 2 wks", "since fall", *_CUES),
        templates=(
            "pt c/o {m} {side} {when} , {cue} , {sign} .",
            "{cue} : {m} {side} , {sign} noted , will f/u .",
            "A/P : {m} {side} - cont meds , {cue} consult re {sign} .",
            "h/o {m} {side} {when} , s/p {sign} , {cue} wnl .",
            "Imp : {side} {m} , {cue} , r/o {sign} .",
            "{n} y/o w/ {m} {side} {when} . {cue} reviewed , {sign} .",
            "Dx {m} ( {code} ) {side} , {cue} .",
            "denies {sign} . {cue} c/w {m} {side} {when} .",
        ),
        fillers=(
            "VSS , afebrile , NAD .",
            "RTC {n} wks .",
            "Meds reviewed , NKDA .",
            "d/w pt and family .",
        ),
    ),
    "patients": _Style(
        modifiers=("severe", "chronic", "acute"),
        spoken={"lay": 0.74, "plain": 0.1, "formal": 0.1, "initials": 0.06},
        indexed={"lay": 0.9, "plain": 0.5, "formal": 0.6, "initials": 0.5},
        misspelt=0.3,
        implied=0.0,
        neutral=(*_LAY_CUES, *_CUES),
        templates=(
            "i have had {m} {when} and {cue} is a nightmare , {sign} .",
            "after {n} days on this stuff my {m} came back {when} , {sign} , plus {cue} !!",
            "does anyone else get {m} with {cue} ? {sign} {when} :(",
            "so scared , doc says it is {m} , something about {cue} and {sign} .",
            "{sign} ... and now {m} {when} , {cue} is so hard .",
            "this pill gave me {m} {when} !!! {cue} and {sign} ruined my week .",
            "my mum 's {m} started {when} , {sign} , and {cue} got worse .",
        ),
        fillers=(
            "i just want my life back .",
            "hugs to everyone here xx",
            "NOT worth it , would not take again .",
            "sorry for the rant lol",
        ),
    ),
}

CORPORA = tuple(_STYLES)
"""The names of the corpora."""


def make_ontology(corpus: str, seed: int = 0, size: int = 1500) -> list[Concept]:
    """Make the ontology of a corpus.

    Args:
        corpus: One of ``CORPORA``.
        seed: Seed of the meanings and names; the corpora of one seed belong together.
        size: Number of concepts. A larger ontology of the same seed begins with the smaller one.

    Returns:
        The concepts, each with a preferred name that no other one has.

    Raises:
        DataError: There is no such corpus, or the lexicon has too few concepts for the size.
    """
    return [entry.concept for entry in make_entries(corpus, seed, size)]


@lru_cache(maxsize=8)
def make_entries(corpus: str, seed: int = 0, size: int = 1500) -> tuple[Entry, ...]:
    """Make the ontology of a corpus together with the meaning of each concept.

    Args:
        corpus: One of ``CORPORA``.
        seed: As for :func:`make_ontology`.
        size: As for :func:`make_ontology`.

    Returns:
        The entries, in the ontology's order.

    Raises:
        DataError: As for :func:`make_ontology`.
    """
    if corpus not in _STYLES:
        raise DataError(f"There is no synthetic corpus {corpus!r}; use {', '.join(CORPORA)}")
    if size < 2:
        raise DataError(f"The ontology size is {size}; give at least 2")
    entries = tuple(
        Entry(_concept(corpus, number, meaning, side, seed), meaning, side)
        for number, (meaning, side) in enumerate(islice(_inventory(corpus, seed), size))
    )
    if len(entries) < size:
        raise DataError(
            f"The lexicon gives {corpus} {len(entries)} concepts, not {size}; ask for fewer"
        )
    return entries


def make_mentions(
    corpus: str, split: str, size: int, seed: int = 0, concepts: int = 1500
) -> Iterator[Mention]:
    """Make the mentions of a split, document by document.

    Args:
        corpus: One of ``CORPORA``.
        split: One of ``train``, ``validation`` and ``test``.
        size: Number of mentions; a smaller split of the same seed is the beginning of a larger one.
        seed: Seed of the ontology and of the documents.
        concepts: Number of concepts in the ontology.

    Returns:
        An iterator over the mentions; it holds one document at a time.

    Raises:
        DataError: There is no such corpus or split, or the ontology size is out of range.
    """
    if split not in SPLITS:
        raise DataError(f"There is no split {split!r}; use {', '.join(SPLITS)}")
    writer = _Writer(corpus, seed, concepts)
    return islice(chain.from_iterable(writer.document(split, i) for i in count()), size)


@dataclass
class SyntheticConfig(RankingConfig):
    """How a synthetic corpus is made; ``max_examples`` says how many mentions to write.

    Args:
        concepts: Number of concepts in the ontology.
    """

    concepts: int = 1500
    names_from: list[str] = field(default_factory=list)


class SyntheticMedical(CandidateRankingBuilder):
    """The synthetic corpora as ranking examples; the configuration's name is the corpus.

    A split that ``max_examples`` does not name has its default size: 3,000 mentions to train, 600
    to validate and 1,000 to test.

    Example:
        >>> builder = SyntheticMedical(config_name="notes", seed=1)  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
        >>> train = builder.as_dataset(split="train")  # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = SyntheticConfig
    LICENSE = License(
        name="Apache License 2.0",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        redistributable=True,
        id="apache-2.0",
    )
    BUILDER_CONFIGS: ClassVar[list[datasets.BuilderConfig]] = [
        SyntheticConfig(
            name="articles",
            version=CandidateRankingBuilder.VERSION,
            num_candidates=10,
            context_words=10,
        ),
        SyntheticConfig(
            name="notes",
            version=CandidateRankingBuilder.VERSION,
            num_candidates=25,
            context_words=20,
        ),
        SyntheticConfig(
            name="patients",
            version=CandidateRankingBuilder.VERSION,
            num_candidates=10,
            context_words=10,
        ),
    ]

    config: SyntheticConfig

    def _concepts(self, problems: Problems) -> Sequence[Concept]:
        return make_ontology(self.config.name, self.config.seed, self.config.concepts)

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        size = (_SIZES | (self.config.max_examples or {}))[split]
        return make_mentions(self.config.name, split, size, self.config.seed, self.config.concepts)


def _inventory(corpus: str, seed: int) -> Iterator[tuple[Meaning, str]]:
    """What the ontology of a corpus tells apart: meanings, in notes with sides."""
    for meaning in named_meanings():
        yield meaning, ""
    for group in make_groups(seed, _STYLES[corpus].modifiers):
        # Each corpus lacks some of what the others have.
        if random.Random(f"gap:{seed}:{corpus}:{group[0].key}").random() < 0.2:
            continue
        for meaning in group:
            yield meaning, ""
            if corpus == "notes" and meaning.paired and not meaning.modifier:
                yield from ((meaning, side) for side in _SIDES)


def _concept(corpus: str, number: int, meaning: Meaning, side: str, seed: int) -> Concept:
    rng = random.Random(f"names:{seed}:{corpus}:{meaning.key}:{side}")
    if corpus == "articles":
        # A third of the headings are in plain words, whatever their modifier.
        plain = random.Random(f"heading:{seed}:{meaning.bare}").random() < 0.33
        id_, name = f"D{100000 + number}", meaning.names["plain" if plain else "formal"][0]
    elif corpus == "notes":
        id_ = f"{meaning.code}{1 + _SIDES.index(side) if side else 0}"
        name = meaning.descriptive.capitalize()
        if not meaning.modifier:
            name += f", {side or 'unspecified'}"
    else:
        id_, name = f"PV{7000000 + number}", meaning.colloquial.capitalize()
    synonyms = []
    for register, chance in _STYLES[corpus].indexed.items():
        synonym = rng.choice(meaning.names[register])
        if rng.random() < chance:
            synonyms.append(f"{side} {synonym}" if side else synonym)
    unique = {s.lower(): s for s in synonyms if s.lower() != name.lower()}
    return Concept(id_, name, tuple(unique.values()))


class _Writer:
    """Writes the documents of one corpus."""

    def __init__(self, corpus: str, seed: int, concepts: int) -> None:
        self.corpus = corpus
        self.seed = seed
        self.entries = make_entries(corpus, seed, concepts)
        self.style = _STYLES[corpus]
        rng = random.Random(f"frequency:{seed}:{corpus}")
        # Frequencies fall off slowly by a rank of the corpus's own. Named conditions are few and
        # frequent, and how frequent is what makes one reading of an abbreviation dominant.
        ranks = rng.sample(range(1, len(self.entries) + 1), len(self.entries))
        named = {meaning.key for meaning in named_meanings()}
        weights = [
            rank**-0.8 * (rng.choice((16.0, 4.0, 1.0)) if entry.meaning.key in named else 1.0)
            for rank, entry in zip(ranks, self.entries, strict=True)
        ]
        self.everything = (self.entries, list(accumulate(weights)))
        self.by_system: dict[str, tuple[list[Entry], list[float]]] = {}
        for system in SYSTEMS:
            own = [i for i, e in enumerate(self.entries) if e.meaning.system == system]
            if own:
                cumulative = list(accumulate(weights[i] for i in own))
                self.by_system[system] = ([self.entries[i] for i in own], cumulative)
        self.bare = {e.meaning.key: e.meaning for e in self.entries if not e.meaning.modifier}

    def document(self, split: str, index: int) -> list[Mention]:
        """Write one document: a few sentences, mostly on one organ system."""
        rng = random.Random(f"document:{self.seed}:{self.corpus}:{split}:{index}")
        topic = rng.choice(list(self.by_system))
        parts: list[str] = []
        golds: list[Entry] = []
        for _ in range(rng.randint(2, 5)):
            population, cumulative = (
                self.by_system[topic] if rng.random() < 0.7 else self.everything
            )
            gold = rng.choices(population, cum_weights=cumulative)[0]
            before, mention, after = self._sentence(gold, rng)
            if rng.random() < 0.3:
                after = f"{after} {rng.choice(self.style.fillers)}"
            after = after.replace("{n}", str(rng.randint(2, 89)))
            # Parts at odd places are mentions.
            parts[-1:] = [f"{parts[-1]} {before}" if parts else before]
            parts += [mention, after]
            golds.append(gold)
        text = "".join(parts)
        ends = list(accumulate(map(len, parts)))
        spans = list(zip(ends[0::2], ends[1::2], strict=False))
        return [
            Mention(
                document=f"{self.corpus}-{split}-{index:07d}",
                text=text[start:end],
                left=text[:start],
                right=text[end:],
                concept=gold.concept.id,
                key=f"{start}-{end}",
            )
            for (start, end), gold in zip(spans, golds, strict=True)
        ]

    def _sentence(self, gold: Entry, rng: random.Random) -> tuple[str, str, str]:
        """Write a sentence as the text before, in and after the mention."""
        style, meaning = self.style, gold.meaning
        # A few words are of something else, so that context helps without deciding.
        system, process = (
            other.meaning if rng.random() < 0.2 else meaning
            for other in rng.choices(self.entries, k=2)
        )
        words = SYSTEMS[system.system]
        lay = self.corpus == "patients"
        cues = {"articles": words.formal, "notes": words.clinical, "patients": words.lay}
        implied = rng.random() < style.implied
        when, side = rng.choice(style.neutral), ""
        register = rng.choices(list(style.spoken), list(style.spoken.values()))[0]
        spoken = meaning
        if self.corpus == "articles" and meaning.modifier and implied:
            spoken = self.bare[meaning.bare]
            when = rng.choice(MODIFIERS[meaning.modifier].cues)
        mention = rng.choice(spoken.names[register])
        if gold.side:
            letter = gold.side[0]
            side = rng.choice((f"on the {gold.side}", f"{letter.upper()} side", f"{letter}t sided"))
            if not implied:
                mention = f"{rng.choice((letter.upper(), gold.side, letter + 't'))} {mention}"
                side = ""
        if rng.random() < style.misspelt:
            mention = misspell(mention, rng)
        slots = {
            "cue": rng.choice(cues[self.corpus]),
            "sign": rng.choice(process.lay_signs if lay else process.signs),
            "when": when,
            "side": side,
            "code": meaning.code.split(".")[0],
            "n": str(rng.randint(2, 89)),
        }
        before, after = (
            " ".join(re.sub(r"\{(\w+)\}", lambda slot: slots[slot[1]], part).split())
            for part in rng.choice(style.templates).split("{m}")
        )
        return f"{before} " if before else "", mention, f" {after}"
