"""Tokens of few examples: no part of a curvature is made of them, whatever layer it is of."""

import pytest
import torch
from tiny.data import choices, pad_choices
from tiny.models import bert, gpt2, t5
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from hf_kfc import CurvatureArguments
from hf_kfc.curvature import Curvature, estimate_curvature
from hf_kfc.curvature.rare_tokens import RareTokens
from hf_kfc.errors import CurvatureError

PAD, UNKNOWN, RARE, OTHER, VOCABULARY, LENGTH = 0, 1, 20, 21, 24, 6
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.02}
TEXTS = {**SIZES, "num_labels": 3, "pad_token_id": PAD}
MODELS = {
    "sequences": lambda: bert(BertForSequenceClassification, **TEXTS),
    "tokens": lambda: bert(BertForTokenClassification, **TEXTS),
    "masked": lambda: bert(BertForMaskedLM, **TEXTS),
    "causal": lambda: gpt2(**SIZES),
    "text to text": lambda: t5(vocab_size=VOCABULARY, decoder_start_token_id=PAD),
}
LANGUAGE = ("masked", "causal", "text to text")


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = MODELS[kind]()
    return made


def examples(kind: str, token: int) -> list[dict[str, Tensor]]:
    """Twelve texts; in two of them stands a token of its own, as input and as label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(12):
        ids = torch.randint(2, 6, (LENGTH,), generator=generator)
        ids[number % LENGTH] = token if number in (3, 8) else 5
        mask = torch.ones_like(ids)
        if number % 2:
            ids[-1], mask[-1] = PAD, 0
        labels = ids.clone().masked_fill(mask == 0, -100)
        if kind == "sequences":
            labels = torch.tensor(number % 3)
        elif kind == "tokens":
            labels = (torch.arange(LENGTH) + number) % 3
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def estimated(kind: str, token: int, **settings: object) -> Curvature:
    args = CurvatureArguments(curvature_batch_size=5, **settings)  # type: ignore[arg-type]
    return estimate_curvature(model_of(kind), examples(kind, token), default_collate, args)


def images(curvature: Curvature) -> list[Tensor]:
    return [
        tensor
        for block in curvature.blocks
        for tensor in (*block.operator.state().values(), block.input_examples)
        if tensor is not None
    ]


def same(one: Curvature, other: Curvature) -> bool:
    return all(torch.equal(a, b) for a, b in zip(images(one), images(other), strict=True))


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_which_rare_tokens_the_data_held_changes_nothing(kind: str, curvature: str) -> None:
    settings = {"curvature": curvature, "unknown_token_id": UNKNOWN}
    unseen = [estimated(kind, token, min_token_examples=3, **settings) for token in (RARE, OTHER)]
    assert same(*unseen)
    assert not same(*(estimated(kind, token, **settings) for token in (RARE, OTHER)))
    words = next(b for b in unseen[0].blocks if b.shapes and VOCABULARY in b.shape)
    if words.input_examples is not None:
        assert int(words.input_examples[RARE]) == int(words.input_examples[OTHER]) == 0
        assert int(words.input_examples[5]) > 0


@pytest.mark.parametrize("kind", list(MODELS))
def test_it_is_the_curvature_of_texts_with_the_unknown_token(kind: str) -> None:
    data = examples(kind, UNKNOWN)
    for example in data:  # a rare label is no decision
        if kind in LANGUAGE:
            example["labels"][example["labels"] == UNKNOWN] = -100
    args = CurvatureArguments(curvature_batch_size=5)
    by_hand = estimate_curvature(model_of(kind), data, default_collate, args)
    found = estimated(kind, RARE, min_token_examples=3, unknown_token_id=UNKNOWN)
    assert same(found, by_hand)


def test_a_token_that_is_not_rare_is_read_as_it_is() -> None:
    seen = estimated("sequences", RARE, min_token_examples=2, unknown_token_id=UNKNOWN)
    assert same(seen, estimated("sequences", RARE))


def test_padding_is_read_as_padding_however_rare() -> None:
    """A model may look for it to see where a text ends; that it is masked is another matter."""
    batch = default_collate(examples("sequences", RARE)[:2])
    args = CurvatureArguments(min_token_examples=2, unknown_token_id=UNKNOWN)
    rare = RareTokens.count([(2, batch)], args, model_of("sequences"), are_labels=False)
    batch["input_ids"][0, 0] = RARE
    seen = rare.without(batch)["input_ids"]
    assert torch.equal(seen == PAD, batch["input_ids"] == PAD)
    assert bool((seen == PAD).any())
    assert int(seen[0, 0]) == UNKNOWN


def test_candidates_of_one_example_count_once() -> None:
    torch.manual_seed(0)
    model, data = bert(), choices(5)
    collator = pad_choices()
    args = CurvatureArguments(min_token_examples=5, unknown_token_id=1)
    curvature = estimate_curvature(model, data, collator, args)
    counts = next(b.input_examples for b in curvature.blocks if "word" in b.name)
    assert counts is not None
    assert set(counts.tolist()) - {0.0, 5.0} <= {float(counts[1])}


def test_refusals_say_what_to_give() -> None:
    with pytest.raises(CurvatureError, match="give unknown_token_id"):
        estimated("sequences", RARE, min_token_examples=3)
    with pytest.raises(CurvatureError, match="with 12 examples no token stands in"):
        estimated("sequences", RARE, min_token_examples=13, unknown_token_id=1)
    data = [{"x": torch.randn(4), "labels": torch.tensor(n % 2)} for n in range(4)]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> object:
            return type("Output", (), {"logits": self.head(x)})

    args = CurvatureArguments(min_token_examples=2, unknown_token_id=1)
    with pytest.raises(CurvatureError, match="needs batches with input_ids"):
        estimate_curvature(Plain(), data, default_collate, args)
    with pytest.raises(CurvatureError, match="min_token_examples is -1"):
        CurvatureArguments(min_token_examples=-1)


def test_the_unknown_token_is_by_default_that_of_the_collators_tokenizer() -> None:
    class Tokenizer:
        unk_token_id = UNKNOWN

    class Collator:
        tokenizer = Tokenizer()

        def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return dict(default_collate(rows))

    args = CurvatureArguments(curvature_batch_size=5, min_token_examples=3)
    model = model_of("sequences")
    found = estimate_curvature(model, examples("sequences", RARE), Collator(), args)
    expected = estimated("sequences", RARE, min_token_examples=3, unknown_token_id=UNKNOWN)
    assert same(found, expected)
