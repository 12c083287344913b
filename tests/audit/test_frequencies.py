"""What an adversary ranks by a prior's diagonals, against counts made by hand."""

from collections import Counter

import pytest
import torch
from tiny.models import bert
from torch.utils.data import default_collate
from transformers import BertForSequenceClassification

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.audit import frequencies_told
from hf_kfc.priors.privacy import without_rare_inputs

CLASSES, LENGTH = 5, 12


def model() -> BertForSequenceClassification:
    made: BertForSequenceClassification = bert(
        BertForSequenceClassification, seed=0, num_labels=CLASSES, max_position_embeddings=LENGTH
    )
    return made


def texts() -> list[dict[str, torch.Tensor]]:
    """Texts of many lengths; the higher a label or a token the rarer it is."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(60):
        ids = (torch.rand(LENGTH, generator=generator) ** 3 * 12).long() + 2
        mask = (torch.arange(LENGTH) < 2 + n % (LENGTH - 2)).long()
        label = next(k for k, end in enumerate((32, 46, 54, 58, 60)) if n < end)
        rows.append(
            {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(label)}
        )
    return rows


def prior(curvature: str) -> ConsolidationPrior:
    args = CurvatureArguments(curvature=curvature, curvature_batch_size=1)
    return ConsolidationPrior.estimate(model(), texts(), default_collate, args, task="notes")


@pytest.mark.parametrize("curvature", ["kronecker", "kronecker_eigen", "diagonal"])
def test_tokens_lengths_and_labels_are_ranked(curvature: str) -> None:
    found = {
        f.what: f for f in frequencies_told(prior(curvature), model(), texts(), default_collate)
    }
    rows = texts()
    tokens = Counter(int(t) for r in rows for t in r["input_ids"][r["attention_mask"].bool()])
    labels = found["labels by classifier"]
    assert labels.number == CLASSES
    assert labels.correlation > 0.85
    if curvature != "kronecker":
        return  # squared gradients of tokens, no counts
    words = found["inputs of bert.embeddings.word_embeddings"]
    assert (words.number, words.correlation) == (len(tokens), pytest.approx(1.0))
    places = found["inputs of bert.embeddings.position_embeddings"]
    assert (places.number, places.correlation) == (LENGTH - 1, pytest.approx(1.0))


def test_batches_and_rows_left_out_change_nothing_else() -> None:
    whole = prior("kronecker")
    each, several = (
        frequencies_told(whole, model(), texts(), default_collate, batch_size=n) for n in (1, 7)
    )
    assert each == several
    public = without_rare_inputs(whole)
    fewer = frequencies_told(public, model(), texts(), default_collate)
    names = [own.what for own in fewer]
    assert names == [own.what for own in each]
    assert fewer[0].number < each[0].number
    assert fewer[-1] == each[-1]
