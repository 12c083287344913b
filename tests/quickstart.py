"""A first use of the library; .ci/wheel runs it from the installed wheel in an empty folder.

It leaves a model with its tokenizer and reviews behind, on which the command line is tried.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from hf_kfc import (
    ConsolidationArguments,
    ConsolidationPrior,
    ConsolidationTrainer,
    CurvatureArguments,
)

REVIEWS = [("a good film", 1), ("a bad film", 0), ("good and long", 1), ("bad and long", 0)] * 4

words = ["[PAD]", "[UNK]", *sorted({word for text, _ in REVIEWS for word in text.split()})]
trained = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
trained.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, pad_token="[PAD]", unk_token="[UNK]")
torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )
)  # fmt: skip
model.save_pretrained("model")
tokenizer.save_pretrained("model")
rows = [json.dumps({"text": text, "label": label}) for text, label in REVIEWS]
Path("reviews.jsonl").write_text("\n".join(rows), encoding="utf-8")

examples = [{**tokenizer(text), "labels": label} for text, label in REVIEWS]
collator = DataCollatorWithPadding(tokenizer)
prior = ConsolidationPrior.estimate(
    model, examples, collator, CurvatureArguments(curvature="kronecker"), task="reviews"
)
prior.save_pretrained("reviews-prior")

others = [{**tokenizer(text), "labels": 1 - label} for text, label in REVIEWS]
trainer = ConsolidationTrainer(
    model,
    ConsolidationArguments("turned", damping=0.1, max_steps=2, report_to="none", use_cpu=True),
    priors=[ConsolidationPrior.from_pretrained("reviews-prior")],
    train_dataset=others,
    data_collator=collator,
)
trainer.train()
