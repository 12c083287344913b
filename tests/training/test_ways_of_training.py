"""Every way to train with the Trainer, once more with ours: without priors, and with λ = 0.

Each way is run with the plain Trainer and with both of ours on the same model, data and seed; all
parameters, logs and predictions must be the same, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationConfig, ConsolidationTrainer

TIMES = ("runtime", "per_second", "flos")


class Line(nn.Module):
    """y = a·x + b with parameters of no dimension, and outputs as a tuple."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.1))
        self.outputs = outputs

    def forward(self, x: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        y = self.a * x + self.b
        found = (y,) * self.outputs
        return found if labels is None else (nn.functional.mse_loss(y, labels), *found)


class Named(Line):
    """Outputs by name, none of which is called logits."""

    def forward(self, x: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        y = self.a * x + self.b
        loss = {} if labels is None else {"loss": nn.functional.mse_loss(y, labels)}
        return loss | {"height": y}


class DeepConfig(PretrainedConfig):
    model_type = "deep-test"

    def __init__(self, width: int = 4, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.dropout = width, dropout


class Deep(PreTrainedModel):
    """Layers that can be checkpointed, with dropout; classes of a vector.

    The loss is a mean over what the Trainer says: one that is not is treated apart with priors.
    """

    config_class = DeepConfig
    supports_gradient_checkpointing = True

    def __init__(self, config: DeepConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(3))
        self.head = nn.Linear(config.width, 3)
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, x: Tensor, labels: Tensor | None = None, num_items_in_batch: Any = None
    ) -> Any:
        for layer in self.layers:
            if self.training and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(layer.__call__, x)  # type: ignore[operator]
            else:
                x = layer(x)
            x = self.dropout(x.tanh())
        logits = self.head(x)
        if labels is None:
            return {"logits": logits}
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return {"loss": loss / (num_items_in_batch or len(labels)), "logits": logits}


def deep(**config: Any) -> Deep:
    torch.manual_seed(0)
    return Deep(DeepConfig(**config))


def heights() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.randn(24, generator=generator)
    return [{"x": x, "labels": 2 * x + 3} for x in xs]


def vectors() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(24, 4, generator=generator)
    return [{"x": row, "labels": n % 3, "note": "a column"} for n, row in enumerate(rows)]


class Stream(IterableDataset[dict[str, Any]]):
    """Rows without a number; they may end."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


class Twice(list[Any]):
    """Two loaders one after the other."""

    def __iter__(self) -> Iterator[Any]:
        for loader in list.__iter__(self):
            yield from loader

    def __len__(self) -> int:
        return sum(len(loader) for loader in list.__iter__(self))


def two_loaders(trainer: type[Trainer]) -> type[Trainer]:
    class Own(trainer):  # type: ignore[misc,valid-type]
        def get_train_dataloader(self) -> DataLoader[Any]:
            one, other = super().get_train_dataloader(), super().get_train_dataloader()
            return Twice([one, other])  # type: ignore[return-value]

    return Own


def own_loss(trainer: type[Trainer]) -> type[Trainer]:
    class Own(trainer):  # type: ignore[misc,valid-type]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **kw: Any
        ) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kw)
            loss = loss + 0.1 * sum(p.abs().sum() for p in model.parameters())
            return (loss, outputs) if return_outputs else loss

    return Own


def own_optimizer(trainer: type[Trainer]) -> type[Trainer]:
    class Own(trainer):  # type: ignore[misc,valid-type]
        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
            return self.optimizer

    return Own


class Crash(TrainerCallback):
    """Runs out of memory while batches are larger than two."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.train_batch_size > 2:
            raise RuntimeError("CUDA out of memory.")


class Events(TrainerCallback):
    """Notes what is called, in which order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def note(_: Any, state: Any, control: Any, **__: Any) -> None:
            self.seen.append((name, state.global_step))

        return note


def twice(trainer: type[Trainer]) -> type[Trainer]:
    class Own(trainer):  # type: ignore[misc,valid-type]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            super().train(*args, **kwargs)
            return super().train(*args, **kwargs)

    return Own


def resumed(trainer: type[Trainer]) -> type[Trainer]:
    class Own(trainer):  # type: ignore[misc,valid-type]
        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.args.max_steps = 3
            super().train(*args, **kwargs)
            self.args.max_steps = 6
            return super().train(resume_from_checkpoint=True)

    return Own


def weighed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Classes count differently, and the loss is a mean over the micro-batch."""
    weights = torch.tensor([1.0, 2.0, 3.0])
    return nn.functional.cross_entropy(outputs["logits"], labels, weights)


def batch_metrics() -> Callable[..., dict[str, float]]:
    seen: list[float] = []

    def compute(predictions: Any, compute_result: bool) -> dict[str, float]:
        logits, labels = (torch.as_tensor(x) for x in predictions)
        seen.extend((logits.argmax(-1) == labels).float().tolist())
        found = {"accuracy": float(np.mean(seen))} if compute_result else {}
        if compute_result:
            seen.clear()
        return found

    return compute


def accuracy(predictions: Any) -> dict[str, float]:
    logits, labels = predictions
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


EVALUATED: dict[str, Any] = {"eval_strategy": "epoch", "per_device_eval_batch_size": 5}
BEST: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
Way = dict[str, Any]
WAYS: dict[str, Way] = {
    "numbers without dimensions": {"model": Line, "rows": heights, "args": EVALUATED},
    "two outputs": {"model": lambda: Line(2), "rows": heights, "args": EVALUATED},
    "outputs by other names": {"model": Named, "rows": heights, "args": EVALUATED},
    "columns that no model reads": {
        "rows": lambda: [row | {"other": 0.5} for row in heights()],
        "model": Line,
        "args": {"label_names": ["labels"], "remove_unused_columns": False},
    },
    "evaluated every epoch": {"args": EVALUATED, "trainer": {"compute_metrics": accuracy}},
    "metrics of batches": {
        "args": EVALUATED | {"batch_eval_metrics": True},
        "trainer": lambda: {"compute_metrics": batch_metrics()},
    },
    "several evaluation sets": {
        "args": EVALUATED,
        "trainer": lambda: {"eval_dataset": {"a": vectors()[:8], "b": vectors()[8:]}},
    },
    "the best model at the end": {
        "args": EVALUATED | BEST | {"save_strategy": "epoch", "num_train_epochs": 3},
        "trainer": lambda: {
            "compute_metrics": accuracy,
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=1)],
        },
    },
    "dropout": {"model": lambda: deep(dropout=0.5)},
    "checkpointed activations": {
        "model": lambda: deep(dropout=0.5),
        "args": {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    },
    "accumulated": {"args": {"gradient_accumulation_steps": 3}},
    "accumulated, the last step incomplete": {"args": {"gradient_accumulation_steps": 4}},
    "clipped": {"args": {"max_grad_norm": 0.01}},
    "not clipped": {"args": {"max_grad_norm": 0.0}},
    "smoothed labels": {"args": {"label_smoothing_factor": 0.1}},
    "weight decay and a schedule": {
        "args": {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2}
    },
    "an optimizer of one's own": {"wrap": own_optimizer},
    "another optimizer": {"args": {"optim": "adafactor"}},
    "an optimizer that is given": {
        "trainer": lambda: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.2})}
    },
    "a model that is made later": {"trainer": lambda: {"model_init": lambda _=None: deep()}},
    "a loss of one's own": {"wrap": own_loss},
    "two loaders": {"wrap": two_loaders},
    "a stream": {"rows": lambda: Stream(vectors()), "args": {"max_steps": 4}},
    "a stream that ends early": {"rows": lambda: Stream(vectors()[:9]), "args": {"max_steps": 9}},
    "a stream of groups": {
        "rows": lambda: Stream(vectors()),
        "args": {"max_steps": 3, "gradient_accumulation_steps": 2},
    },
    "no last batch": {"args": {"dataloader_drop_last": True, "per_device_train_batch_size": 7}},
    "full determinism": {"args": {"full_determinism": True}},
    "smaller batches after a crash": {
        "args": {"auto_find_batch_size": True},
        "trainer": lambda: {"callbacks": [Crash()]},
    },
    "bfloat16": {"args": {"bf16": True}},
    "losses that are not finite are logged": {"args": {"logging_nan_inf_filter": False}},
    "nothing logged": {"args": {"logging_strategy": "no"}},
    "a first step logged": {"args": {"logging_first_step": True, "logging_steps": 100}},
    "trained twice": {"wrap": twice},
    "resumed by another length": {
        "wrap": resumed,
        "args": {"save_strategy": "steps", "save_steps": 1, "ignore_data_skip": True},
    },
    "weighed classes, accumulated": {
        "args": {"gradient_accumulation_steps": 3},
        "trainer": {"compute_loss_func": weighed},
    },
    "evaluated before and by a schedule": {
        "args": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2, "eval_delay": 3}
    },
    "a schedule of what is evaluated": {
        "args": EVALUATED | {"lr_scheduler_type": "reduce_lr_on_plateau"}
    },
    "compiled": {"args": {"torch_compile": True, "torch_compile_backend": "eager"}},
    "batches that are split": {"args": {"accelerator_config": {"split_batches": True}}},
    "tokens counted": {"args": {"include_num_input_tokens_seen": "all"}},
}


def run(kind: type[Trainer], way: Way, folder: Path, **ours: Any) -> tuple[Trainer, Any]:
    """Train one way; return the trainer and its predictions."""
    more = way.get("trainer", {})
    more = more() if callable(more) else dict(more)
    rows = way.get("rows", vectors)()
    model = None if "model_init" in more else way.get("model", deep)()
    if ours.pop("with_a_prior", False):
        at = deep() if model is None else model
        ours["priors"] = [ConsolidationPrior.l2(copy.deepcopy(at), task="old")]
        ours["consolidation"] = ConsolidationConfig(strengths=[0.0])
    args: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    evaluated = rows.rows if isinstance(rows, Stream) else rows
    trainer = way.get("wrap", lambda own: own)(kind)(
        model,
        TrainingArguments(**args | way.get("args", {})),
        train_dataset=rows,
        **{"eval_dataset": evaluated} | more | ours,
    )
    trainer.events = Events()  # type: ignore[attr-defined]
    trainer.add_callback(trainer.events)  # type: ignore[attr-defined]
    trainer.train()
    return trainer, trainer.predict(evaluated)


def logs(trainer: Trainer) -> list[dict[str, Any]]:
    """What was logged, but for times and the penalty of nothing."""
    found = [
        {
            name: value
            for name, value in line.items()
            if not any(t in name for t in TIMES) and "penalty" not in name and name != "task_loss"
        }
        for line in trainer.state.log_history
    ]
    return [{n: "nan" if v != v else v for n, v in line.items()} for line in found]  # noqa: PLR0124


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_trainer(way: str, tmp_path: Path) -> None:
    expected, predicted = run(Trainer, WAYS[way], tmp_path / "plain")
    for number, more in enumerate(({}, {"with_a_prior": True})):
        found, own = run(ConsolidationTrainer, WAYS[way], tmp_path / f"ours{number}", **more)
        theirs = expected.model.state_dict()  # type: ignore[union-attr]
        mine = found.model.state_dict()  # type: ignore[union-attr]
        assert theirs.keys() == mine.keys()
        assert all(torch.equal(theirs[name], mine[name]) for name in theirs), more
        assert logs(expected) == logs(found)
        assert expected.events.seen == found.events.seen != []  # type: ignore[attr-defined]
        for a, b in zip(predicted[:2], own[:2], strict=True):
            parts = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
            assert all(np.array_equal(x, y) for x, y in parts)
        assert expected.state.global_step == found.state.global_step > 0
