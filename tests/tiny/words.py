"""A model that adds up words, and texts in which some words are rare."""

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

SECRET = 6  # a token of two examples


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.segments = nn.Embedding(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, input_ids):
        hidden = self.words(input_ids) + self.segments(torch.zeros_like(input_ids))
        return SequenceClassifierOutput(logits=self.head(hidden.tanh().sum(1)))


def data() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    ids = torch.randint(0, 5, (40, 3))
    ids[:2, 0] = SECRET
    ids[2:12, 1] = 7  # in ten examples
    ids[12:21, 1] = 8  # in nine
    return [{"input_ids": row, "labels": torch.tensor(n % 2)} for n, row in enumerate(ids)]


def moved(seed: int) -> Bag:
    torch.manual_seed(seed)
    return Bag()
