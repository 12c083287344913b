"""Answers drawn at random, for the tests of what is told of them."""

import random

from hf_kfc.ranking.scoring import Answer, Answers

CONCEPTS = ["C1", "C2", "C3", "C4", "C5"]


def draw(seed: int, mentions: int = 200, documents: int = 20, *, right: float = 0.7) -> Answers:
    """Answers about one gold whatever the seed: one in eight golds is no concept."""
    gold, own = random.Random(0), random.Random(seed)
    rows = []
    for number in range(mentions):
        concept = gold.choice(CONCEPTS) if gold.random() > 1 / 8 else ""
        types = tuple(gold.sample(["Sign", "Disease", "Drug"], gold.randrange(3)))
        document = str(gold.randrange(documents))
        candidates = own.sample(CONCEPTS, 4)
        if concept and own.random() < right:
            candidates = [concept, *(c for c in candidates if c != concept)][:4]
        chance = own.random()
        said = candidates[0] if chance > 0.2 else ""
        found = (said, tuple(candidates), chance)
        rows.append(Answer(document, str(number), "it", "l", "r", types, concept, *found))
    return Answers(rows, {"C1": "one <b>"})
