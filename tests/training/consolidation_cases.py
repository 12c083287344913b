"""Tiny models, data and priors, runs that keep their gradients, and a dense reference.

The reference shares no code with the library: candidates and positions are never padded, and the
penalty is vec(Δ)ᵀ F vec(Δ) with every F written out as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    PreTrainedModel,
    TrainerCallback,
)
from transformers.distributed import DistributedConfig

from hf_kfc.curvature import (
    Block,
    Curvature,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    Layout,
    Operator,
    find_layers,
)
from hf_kfc.priors import ConsolidationPrior, Provenance
from hf_kfc.ranking import CandidateCollator, CnnConfig, CnnForMultipleChoice
from hf_kfc.training import ConsolidationArguments, ConsolidationTrainer

VOCABULARY = 24
KINDS = ("identity", "diagonal", "kronecker", "kronecker_eigen")
LEARNING_RATE = 0.05
FOR_EVALUATION = -1
"""The ``index`` of an example that is not trained on."""


# Models and data


def bert(dropout: float = 0.0) -> BertForMultipleChoice:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.4,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMultipleChoice(config)


def cnn(dropout: float = 0.0) -> CnnForMultipleChoice:
    torch.manual_seed(0)
    return CnnForMultipleChoice(CnnConfig(vocab_size=VOCABULARY, hidden_size=8, dropout=dropout))


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"bert": bert, "cnn": cnn}


def make_examples(count: int = 10, seed: int = 1) -> list[dict[str, Any]]:
    """Encoded examples of 2 to 4 candidates of 5 to 9 tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    examples = []
    for index in range(count):
        lengths = draw(5, 10, draw(2, 5)[0])
        examples.append(
            {
                "index": index,
                "input_ids": [draw(1, VOCABULARY, n) for n in lengths],
                "token_type_ids": [[0] * (n - 2) + [1] * 2 for n in lengths],
                "labels": draw(0, len(lengths))[0],
            }
        )
    return examples


@dataclass
class Collator:
    """The library's collator, and a note of which examples went into each training batch."""

    masked: bool = True
    seen: list[list[int]] = field(default_factory=list)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        indices = [example["index"] for example in examples]
        if FOR_EVALUATION not in indices:
            self.seen.append(indices)
        batch = CandidateCollator(SimpleNamespace(pad_token_id=0))(examples)
        return {k: v for k, v in batch.items() if self.masked or k != "candidate_mask"}


# Priors


def make_operator(kind: str, shape: tuple[int, int], diagonal_a: bool, seed: int) -> Operator:
    """A random positive definite operator in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, p = shape

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def spd(n: int) -> Tensor:
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        return root @ root.T / n

    if kind == "identity":
        return Identity(rand() + 0.5)
    if kind == "kronecker":
        return Kronecker(rand(p) if diagonal_a else spd(p), spd(q))
    if kind == "kronecker_eigen":
        u_a = torch.empty(0) if diagonal_a else torch.linalg.eigh(spd(p))[1]
        return KroneckerEigen(u_a, torch.linalg.eigh(spd(q))[1], rand(q, p))
    return Diagonal(rand(q, p))


def make_prior(
    model: nn.Module,
    kind: str = "kronecker",
    *,
    task: str = "old",
    seed: int = 0,
    ignore: Sequence[str] = (),
    num_examples: int = 30,
    distance: float = 0.1,
) -> ConsolidationPrior:
    """A prior with random operators and an anchor a random step away from the model.

    Args:
        model: The model to be trained.
        kind: Of the operators; "mixed" gives each layer another one.
        task: The old task.
        seed: Of operators and anchor.
        ignore: Parameters left free.
        num_examples: N_old.
        distance: Standard deviation of the step.
    """
    layers, ignored = find_layers(model, ignore)
    blocks = []
    for index, layer in enumerate(layers):
        wanted = KINDS[(index + seed) % len(KINDS)] if kind == "mixed" else kind
        if not layer.rule.has_factors and wanted.startswith("kronecker"):
            wanted = "diagonal"
        operator = make_operator(
            wanted, layer.shape, layer.rule.diagonal_inputs, 100 * seed + index
        )
        blocks.append(layer.block(operator))
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    anchor = {
        name: parameters[name].detach().float() + distance * torch.randn(shape, generator=generator)
        for block in blocks
        for name, shape in block.shapes.items()
    }
    curvature = Curvature(tuple(blocks), num_examples, tuple(ignored))
    return ConsolidationPrior(anchor, curvature, Provenance(task, num_examples=num_examples))


# The dense reference


def dense(operator: Operator, q: int, p: int, damping: float) -> Tensor:
    """F of the row-major vectorisation of a [q, p] matrix, damped, in float64."""
    state = {name: tensor.double() for name, tensor in operator.state().items()}
    if isinstance(operator, Kronecker):
        factors = []
        for name in ("G", "A"):
            factor = state[name].diag() if state[name].ndim == 1 else state[name]
            mean = factor.diagonal().mean()
            factors.append(factor + damping * mean * torch.eye(len(factor)).double())
        return torch.kron(*factors)
    if isinstance(operator, KroneckerEigen):
        u_a = state["U_A"] if state["U_A"].ndim == 2 else torch.eye(p).double()
        basis = torch.kron(state["U_G"].contiguous(), u_a.contiguous())
        matrix = basis @ state["second_moments"].flatten().diag() @ basis.T
    elif isinstance(operator, Diagonal):
        matrix = state["diagonal"].flatten().diag()
    else:
        matrix = state["scale"] * torch.eye(q * p).double()
    return matrix + damping * matrix.diagonal().mean() * torch.eye(q * p).double()


def vector(block: Block, tensors: dict[str, Tensor]) -> Tensor:
    """The block's parameters as the row-major vector that its operator acts on."""
    weight, *bias = (tensors[name] for name in block.shapes)
    if block.layout is Layout.IN_OUT:
        weight = weight.T
    rows = weight.numel() if block.layout is Layout.ELEMENTWISE else len(weight)
    return torch.cat([weight.reshape(rows, -1), *(b.reshape(rows, 1) for b in bias)], 1).flatten()


class DensePenalty:
    """λ_i ΔᵀF_iΔ of each prior with F_i as one matrix per block, for plain autograd."""

    def __init__(
        self, priors: Sequence[ConsolidationPrior], strengths: Sequence[float], damping: float
    ) -> None:
        self.terms = [
            [
                (prior, block, strength * dense(block.operator, *block.shape, damping))
                for block in prior.curvature.blocks
            ]
            for prior, strength in zip(priors, strengths, strict=True)
        ]

    def __call__(self, parameters: dict[str, Tensor]) -> list[Tensor]:
        return [
            torch.stack([self._value(parameters, *block) for block in term]).sum()
            for term in self.terms
        ]

    @staticmethod
    def _value(
        parameters: dict[str, Tensor], prior: ConsolidationPrior, block: Block, matrix: Tensor
    ) -> Tensor:
        delta = vector(block, {n: parameters[n].double() - prior.anchor[n] for n in block.shapes})
        return delta @ matrix @ delta


def reference_task_loss(model: nn.Module, examples: Sequence[dict[str, Any]]) -> Tensor:
    """Mean cross entropy, each example alone and each candidate alone: nothing is padded."""
    losses = []
    for example in examples:
        scores = []
        for ids, types in zip(example["input_ids"], example["token_type_ids"], strict=True):
            row = {"input_ids": torch.tensor([[ids]]), "token_type_ids": torch.tensor([[types]])}
            scores.append(model(attention_mask=torch.ones(1, 1, len(ids)), **row).logits[0, 0])
        losses.append(-torch.stack(scores).log_softmax(0)[example["labels"]])
    return torch.stack(losses).mean()


@dataclass
class Step:
    """One optimizer step as a reference sees it."""

    gradients: dict[str, Tensor]
    task_loss: float
    penalties: list[float]


def reference_step(
    model: nn.Module,
    parameters: dict[str, Tensor],
    batches: Sequence[Sequence[dict[str, Any]]],
    penalty: Callable[[dict[str, Tensor]], list[Tensor]],
) -> Step:
    """Gradient of mean over all micro-batches of all processes + the penalty once, in float64."""
    model.double().eval()  # there is no dropout
    model.load_state_dict(parameters, strict=False)
    model.zero_grad()
    task = torch.stack([reference_task_loss(model, batch) for batch in batches]).mean()
    penalties = torch.stack(penalty(dict(model.named_parameters())))
    (task + penalties.sum()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Step(gradients, task.item(), penalties.tolist())


# Runs


@dataclass(frozen=True)
class Case:
    """One training run.

    Args:
        model: Key of ``MODELS``.
        sharded: With FSDP2.
        accumulation: Micro-batches in an optimizer step.
        batch_size: Examples in a micro-batch.
        examples: Examples in an epoch.
        epochs: Epochs.
        masked: Whether batches say which candidates are padding; without, there must be none.
        evaluated: Whether the trainer evaluates before it trains.
        frozen: Parameters whose name starts so are frozen, though the priors know them.
        arguments: Other training arguments.
    """

    model: str = "bert"
    sharded: bool = False
    accumulation: int = 1
    batch_size: int = 2
    examples: int = 10
    epochs: int = 1
    masked: bool = True
    evaluated: bool = False
    frozen: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        wrapper = "fsdp2" if self.sharded else "plain"
        name = f"{self.model}-{wrapper}-accumulation{self.accumulation}-batch{self.batch_size}"
        flags = [
            *["unmasked"] * (not self.masked),
            *["evaluated"] * self.evaluated,
            *["frozen"] * bool(self.frozen),
        ]
        return "-".join([name, *flags, *(name for name, _ in self.arguments)])

    @property
    def damping(self) -> float:
        return 0.1

    @property
    def strengths(self) -> list[float]:
        return [0.3, 0.05]

    def freezes(self, name: str) -> bool:
        """Whether the parameter is frozen."""
        return bool(self.frozen) and name.startswith(self.frozen)

    def priors(self) -> list[ConsolidationPrior]:
        """Two priors; the second leaves a layer free."""
        model = MODELS[self.model]()
        return [
            make_prior(model, "mixed", task="first", seed=1),
            make_prior(model, "kronecker", task="second", seed=2, ignore=["classifier.*"]),
        ]

    def penalty(self) -> DensePenalty:
        """The reference's penalty, made once for all cases that have the same."""
        return _dense_penalty(self.model)


@cache
def _dense_penalty(model: str) -> DensePenalty:
    case = Case(model)
    return DensePenalty(case.priors(), case.strengths, case.damping)


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


class Recorder(TrainerCallback):
    """Keeps parameters and gradients as they are right before each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        named = dict(model.named_parameters())
        self.steps.append(
            (
                {n: full(p) for n, p in named.items()},
                {n: full(p.grad) for n, p in named.items() if p.grad is not None},
            )
        )


def arguments(directory: Path | str, **changes: Any) -> ConsolidationArguments:
    """Plain SGD on the CPU that logs every step and writes nothing."""
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "num_train_epochs": 1,
        "strengths": [0.3],
    }
    return ConsolidationArguments(str(directory), **(defaults | changes))


def make_trainer(case: Case, directory: Path) -> tuple[ConsolidationTrainer, Recorder, Collator]:
    """A trainer that notes its batches and gradients."""
    args = arguments(
        directory / "run",
        strengths=case.strengths,
        damping=case.damping,
        gradient_accumulation_steps=case.accumulation,
        per_device_train_batch_size=case.batch_size,
        num_train_epochs=case.epochs,
        **dict(case.arguments),
    )
    model = MODELS[case.model]()
    if case.sharded:
        model.save_pretrained(directory / "model")  # by the first process alone
        dist.barrier()
        layers = {"bert": {"bert.encoder.layer.*": "free_full_weight"}, "cnn": {}}
        config = DistributedConfig(fsdp_size=args.world_size, fsdp_plan=layers[case.model])
        model = type(model).from_pretrained(directory / "model", distributed_config=config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not case.freezes(name))
    recorder, collator = Recorder(), Collator(case.masked)
    data = make_examples(case.examples)
    trainer = ConsolidationTrainer(
        model,
        args,
        priors=case.priors(),
        train_dataset=data,
        eval_dataset=[example | {"index": FOR_EVALUATION} for example in data[:3]],
        data_collator=collator,
        callbacks=[recorder],
    )
    return trainer, recorder, collator


def run(case: Case, directory: Path) -> dict[str, Any]:
    """Train, and say what this process saw."""
    trainer, recorder, collator = make_trainer(case, directory)
    sharded = [isinstance(p, DTensor) for p in trainer.model.parameters()]
    if case.evaluated:
        trainer.evaluate()
    trainer.train()
    return {
        "world_size": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "sharded": sharded,
        "steps": recorder.steps,
        "final": {n: full(p) for n, p in trainer.model.named_parameters()},
        "batches": collator.seen,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def windows(case: Case, ranks: Sequence[dict[str, Any]]) -> Iterator[list[list[int]]]:
    """The examples of each optimizer step: micro-batches of all processes together."""
    count = len(ranks[0]["batches"])
    per_epoch = count // case.epochs
    for epoch in range(case.epochs):
        for start in range(0, per_epoch, case.accumulation):
            stop = min(start + case.accumulation, per_epoch)
            span = slice(epoch * per_epoch + start, epoch * per_epoch + stop)
            yield [batch for rank in ranks for batch in rank["batches"][span]]


def check_run(case: Case, ranks: Sequence[dict[str, Any]]) -> None:
    """Every process had the reference's gradient, step and log at every optimizer step."""
    model, data, penalty = MODELS[case.model](), make_examples(case.examples), case.penalty()
    expected = list(windows(case, ranks))
    assert expected
    for rank in ranks:
        assert len(rank["steps"]) == len(rank["logs"]) == len(expected)
    for index, window in enumerate(expected):
        parameters = ranks[0]["steps"][index][0]
        batches = [[data[i] for i in batch] for batch in window]
        reference = reference_step(model, parameters, batches, penalty)
        for rank in ranks:
            following = [step[0] for step in rank["steps"][1:]] + [rank["final"]]
            gradients = rank["steps"][index][1]
            assert gradients.keys() == {n for n in reference.gradients if not case.freezes(n)}
            for name, gradient in gradients.items():
                assert_near(gradient, reference.gradients[name], name)
                stepped = parameters[name] - LEARNING_RATE * gradient
                assert_near(following[index][name], stepped, f"{name} after the step")
            _check_log(rank["logs"][index], reference)


def assert_near(actual: Tensor, expected: Tensor, name: str) -> None:
    """A float32 result equals a float64 one."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}"
    )


def _check_log(log: dict[str, float], reference: Step) -> None:
    first, second = reference.penalties
    expected = {
        "penalty_first": first,
        "penalty_second": second,
        "penalty": first + second,
        "task_loss": reference.task_loss,
        "loss": reference.task_loss + first + second,
    }
    for name, value in expected.items():
        assert_near(torch.tensor(log[name]), torch.tensor(value), name)
