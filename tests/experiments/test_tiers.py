import functools

import torch

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.experiments import DataArguments, LearningArguments, RankerArguments
from hf_kfc.experiments.tiers import learn, prepare
from hf_kfc.ranking import CandidateCollator, CnnForMultipleChoice


def test_every_tier_trains_in_the_precision_that_was_asked_for(monkeypatch):
    autocast: list[bool] = []
    original = CnnForMultipleChoice.forward

    @functools.wraps(original)  # the Trainer reads its signature
    def forward(self, *args, **kwargs):
        if self.training:
            autocast.append(torch.is_autocast_enabled("cpu"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CnnForMultipleChoice, "forward", forward)
    data = DataArguments(train_examples=32, validation_examples=8, test_examples=8)
    ranker = RankerArguments(hidden_size=8, vocab_size=500)
    start, tokenizer, (task,) = prepare(ranker, 0, [("articles", data)], CurvatureArguments())
    args = LearningArguments(epochs=1, bf16=True)
    first = learn(start, task, CandidateCollator(tokenizer), args)
    first.accuracy(task.test)
    learn(first.model, task, CandidateCollator(tokenizer), args)
    assert autocast == [True, True]
