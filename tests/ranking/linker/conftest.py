"""A linker of a few diseases, whose ranker has learnt to compare words."""

from collections.abc import Iterator

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerBase, set_seed

from hf_kfc.ranking import (
    CandidateCollator,
    CnnConfig,
    CnnForMultipleChoice,
    EntityLinker,
    train_tokenizer,
)
from hf_kfc.ranking.encoding import CandidateEncoder
from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.schema import Concept

PARTS = ["head", "heart", "knee", "lung", "skin", "liver", "ear", "jaw", "hip", "eye"]
ILLS = ["pain", "swelling", "cancer", "wound"]
TEXT = "The doctor found {} in March, and none of the others. Later there was {} too."


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="session")
def ontology() -> Ontology:
    return Ontology(
        Concept(f"{part[0].upper()}{n}{k}", f"{ill} of the {part}", (f"{part} {ill}",))
        for n, part in enumerate(PARTS)
        for k, ill in enumerate(ILLS)
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    texts = [TEXT, *(f"{part} {ill} of the" for part in PARTS for ill in ILLS)]
    return train_tokenizer(texts * 3, 300)


@pytest.fixture(scope="session")
def model(tokenizer: PreTrainedTokenizerBase, ontology: Ontology) -> CnnForMultipleChoice:
    """A CNN that has learnt a little: enough to be right more often than not."""
    set_seed(0)
    model = CnnForMultipleChoice(
        CnnConfig(vocab_size=len(tokenizer), hidden_size=32, dropout=0.0, initializer_range=0.3)
    )
    encode, collate = CandidateEncoder.of(tokenizer, 40, 12), CandidateCollator(tokenizer)
    concepts = list(ontology)
    encoded = encode(
        {
            "id": [concept.id for concept in concepts],
            "left": ["The doctor found"] * len(concepts),
            "mention": [concept.synonyms[0] for concept in concepts],
            "right": ["in March"] * len(concepts),
            "candidate_names": [[own.name for own in concepts]] * len(concepts),
            "label": list(range(len(concepts))),
        }
    )
    rows = [
        {"input_ids": ids, "token_type_ids": types, "labels": label}
        for ids, types, label in zip(
            encoded["input_ids"], encoded["token_type_ids"], encoded["labels"], strict=True
        )
    ]
    batch = collate(rows)
    del batch["candidate_mask"]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def linker(
    model: CnnForMultipleChoice, tokenizer: PreTrainedTokenizerBase, ontology: Ontology, tmp_path
) -> EntityLinker:
    return EntityLinker(
        model,
        tokenizer,
        ontology,
        cache_dir=tmp_path / "indexes",
        max_length=40,
        max_name_length=12,
        num_candidates=6,
    )
