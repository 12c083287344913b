"""The estimate takes the data that the Trainer takes, and refuses the rest by name."""

from typing import Any

import datasets
import pytest
import torch
from tiny import models
from tiny.curvatures import assert_equal_matrices, estimate, images
from tiny.data import pad_texts
from tiny.layers import Mlp, vectors
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import CurvatureArguments, Outputs, estimate_curvature
from hf_kfc.errors import CurvatureError

IDS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9]]


def bert() -> nn.Module:
    return models.bert(BertForSequenceClassification, num_labels=3)


def rows(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": IDS, "label": [0, 1, 2, 1], **columns})


def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Makes tensors of all columns: texts raise, as in a tokenizer's padding."""
    made = {name: torch.tensor([row[name] for row in batch]) for name in batch[0]}
    made["labels"] = made.pop("label")
    return made


def curvature(data: Any, collator: Any = collate, **hooks: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return images(estimate_curvature(bert(), data, collator, CurvatureArguments(), **hooks))


@pytest.mark.parametrize(
    "columns",
    [
        {"sentence": list("abcd")},
        {"idx": [0, 1, 2, 3]},
        {"sentence": list("abcd"), "idx": [0, 1, 2, 3], "spans": [["a"], ["b"], [], []]},
        {"nothing": [None] * 4},
    ],
)
def test_columns_that_the_model_does_not_read_are_left_out(columns: dict[str, Any]) -> None:
    assert_equal_matrices(curvature(rows(**columns)), curvature(rows()))


def test_what_is_no_tensor_is_left_out_of_a_batch() -> None:
    def with_more(batch: list[dict[str, Any]]) -> dict[str, Any]:
        return {**collate(batch), "guid": ["a"] * len(batch), "inputs_embeds": None}

    assert_equal_matrices(curvature(rows(), with_more), curvature(rows()))


def test_a_collator_that_reads_texts_gets_them() -> None:
    def of_texts(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([[int(digit) for digit in row["text"]] for row in batch])
        return {"input_ids": ids, "labels": torch.tensor([row["label"] for row in batch])}

    texts = ["".join(map(str, ids)) for ids in IDS]
    data = rows(text=texts).remove_columns("input_ids")
    assert_equal_matrices(curvature(data, of_texts), curvature(rows()))


def test_a_collator_may_take_columns_out_of_the_examples() -> None:
    """As transformers' own for multiple choice does; the first examples are collated repeatedly."""

    def popping(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([row.pop("label") for row in batch])
        return {"input_ids": torch.tensor([row["input_ids"] for row in batch]), "labels": labels}

    data = [dict(row) for row in rows()]
    assert_equal_matrices(curvature(data, popping), curvature(rows()))
    assert all("label" in row for row in data)


def test_a_forward_of_ones_own_sees_every_tensor() -> None:
    def forward(model: Any, batch: Any) -> Outputs:
        return Outputs(model(batch["input_ids"]).logits * batch["weight"][:, None], batch["labels"])

    weighted = curvature(rows(weight=[2.0, 2.0, 2.0, 2.0]), forward=forward)
    assert weighted["classifier"].abs().max() > curvature(rows())["classifier"].abs().max()


def test_an_error_of_the_collator_is_told() -> None:
    def broken(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        curvature(rows(sentence=list("abcd")), broken)


@pytest.mark.parametrize(
    ("collator", "kind"), [(lambda batch: batch, "list"), (lambda _: {"labels": [0, 1]}, "dict")]
)
def test_a_collator_of_no_tensors_is_refused(collator: Any, kind: str) -> None:
    with pytest.raises(CurvatureError, match=f"the collator makes a {kind} without tensors"):
        curvature(rows(), collator)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter(vectors(3))


REFUSED: dict[str, tuple[Any, str]] = {
    "splits": (
        lambda: datasets.DatasetDict({"train": rows(), "test": rows()}),
        r"a DatasetDict holds several data sets \(train, test\)",
    ),
    "stream": (Stream, "a Stream is a stream"),
    "hub_stream": (lambda: rows().to_iterable_dataset(), "IterableDataset is a stream"),
    "loader": (lambda: DataLoader(vectors(3)), "a DataLoader makes batches"),
    "name": (lambda: "imdb", "a str has no examples by index"),
    "frame": (lambda: rows().to_pandas(), r"a DataFrame has columns.*from_pandas"),
    "generator": (lambda: (v for v in vectors(3)), "a generator has no examples by index"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_data_are_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(CurvatureError, match=message):
        estimate(Mlp(), make(), default_collate)


def test_a_model_that_takes_any_keyword_gets_all() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Mlp()

        def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
            result: SequenceClassifierOutput = self.inner(**inputs)
            return result

    assert len(estimate(Wrapper(), vectors(3)).blocks) == 2


class Maskless(nn.Module):
    """Reads no mask, for padding at the end changes nothing before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(self.embed(input_ids)))


def test_padding_does_not_count_though_the_model_reads_no_mask() -> None:
    model = Maskless()

    def padded(length: int) -> list[dict[str, Tensor]]:
        rows = []
        for tokens in (2, 4):
            ids = torch.arange(1, tokens + 1)
            fill = (0, length - tokens)
            row = {"input_ids": nn.functional.pad(ids, fill)}
            row["attention_mask"] = nn.functional.pad(torch.ones_like(ids), fill)
            row["labels"] = nn.functional.pad(ids % 3, fill, value=-100)
            rows.append(row)
        return rows

    one, other = (
        images(estimate_curvature(model, padded(length), default_collate)) for length in (4, 7)
    )
    assert_equal_matrices(other, one)


def test_an_example_without_a_token_is_refused_by_what_it_is() -> None:
    model = models.text_llama()
    texts = [torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.long)]
    with pytest.raises(CurvatureError, match=r"an example has no token .* leave such examples out"):
        estimate_curvature(model, texts, pad_texts(), CurvatureArguments())
