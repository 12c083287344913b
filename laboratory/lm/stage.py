"""A language model learns a domain by one method after the other; what each forgets is measured.

    accelerate launch -m laboratory lm --data_dir data --results runs/spanish.jsonl \\
        --methods none average:0.5 lwf:1 kfc:0.01 probes:1 kfc:0.01+probes:1 lora:8

What the anchor knew is not needed: probes and curvature are of texts that it samples of itself.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, DataCollatorForTokenClassification, PreTrainedModel

from hf_kfc import Probes
from hf_kfc.curvature import CurvatureArguments
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.probes import pad_tokens
from hf_kfc.probes.inputs import said_twice
from hf_kfc.training import ConsolidationArguments, ConsolidationTrainer

from ..arguments import settings_of
from ..averaging import average_parameters
from ..ledger import Ledger
from ..points import Point
from .adapters import with_adapter
from .arguments import LmArguments
from .data import BOARD, Domain, Row, public_rows, read_domain
from .evaluation import Evaluation
from .methods import LmMethod
from .models import load_model

__all__ = ["Stage", "run_lm"]

OLD = "general"
"""What the model can before: the name of the first task of every point."""

_NOT_SETTINGS = ("results", "seeds", "methods", "data_dir", "device", "work_dir", "keep_models")


def run_lm(args: LmArguments) -> None:
    """Run what is missing of a stage.

    Args:
        args: Model, domain, methods, sizes; the results file is gone on from.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    own = settings_of(args)["LmArguments"]
    settings = {name: value for name, value in own.items() if name not in _NOT_SETTINGS}
    ledger, stage = Ledger(Path(args.results), settings), None
    for point in tqdm(list(_points(args)), desc="runs", unit="run"):
        if point not in ledger.records:
            if stage is None or stage.seed != point.seed:
                stage = Stage(args, point.seed)
            ledger.add(point, stage.run(point))


def _points(args: LmArguments) -> Iterator[Point]:
    for seed in args.seeds:
        yield Point(seed, (OLD,), "individual")
        for method in args.methods:
            yield Point(seed, (OLD, args.domain), method)


class Stage:
    """What the runs of one seed share.

    Args:
        args: Of the command line.
        seed: Of the order of texts, and of what is sampled.
    """

    def __init__(self, args: LmArguments, seed: int) -> None:
        self.args, self.seed = args, seed
        own = Path(args.results).with_suffix("") if args.work_dir is None else Path(args.work_dir)
        self.folder = own / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.anchor, self.tokenizer = load_model(args.model)
        cast(nn.Module, self.anchor).to(self._arguments(LmMethod("none")).device)
        self.collator = DataCollatorForTokenClassification(self.tokenizer)

    def run(self, point: Point) -> dict[str, Any]:
        """Learn what a point says, and measure it.

        Args:
            point: The point.
        """
        if len(point.tasks) == 1:
            return self.measure(self.anchor)
        method = LmMethod.parse(point.method)
        folder, training = self.folder / method.trained, dict[str, Any]()
        if folder.exists():
            kept: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model = kept.to(self.anchor.device)
        else:
            model, training = self._learn(method)
            if self.args.keep_models or method.trained == "none":
                model.save_pretrained(folder)
        if method.average < 1:
            model.load_state_dict(average_parameters(self.anchor, model, method.average))
        return self.measure(model) | {"training": training}

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Measure general ability, the domain, and how far the model is from the anchor.

        Args:
            model: The model.
        """
        started, evaluation, probes = time.perf_counter(), self.evaluation, self.probes[1]
        model.train(False)
        with self._precision():
            new = {"cross_entropy": evaluation.cross_entropy(model, self.domain.test)}
            if questions := self.domain.questions[: self.args.answers]:
                new["answers"] = evaluation.answers(model, questions, self.args.length)
            general = evaluation(model)
            parts = [range(i, min(i + 8, len(probes))) for i in range(0, len(probes), 8)]
            found = [probes.loss(model, part, self.collator) for part in parts]
        nats, changed = (torch.cat([getattr(f, n) for f in found]) for n in ("each", "changed"))
        return {
            "general": general,
            "new": new,
            "meter": {"kl": float(nats.mean()), "changed": float(changed.float().mean())},
            "seconds": round(time.perf_counter() - started, 1),
        }

    @cached_property
    def domain(self) -> Domain:
        """What is learnt."""
        args = self.args
        return read_domain(
            args.domain,
            Path(args.data_dir),
            self.tokenizer,
            length=args.length,
            test_rows=args.test_rows,
            seed=self.seed,
        )

    @cached_property
    def evaluation(self) -> Evaluation:
        """What general ability is measured with."""
        args = self.args
        folder = Path(args.data_dir) / "lm"
        return Evaluation(folder, self.tokenizer, args.lambada, args.choices, args.wikipedia)

    @cached_property
    def probes(self) -> tuple[Probes, Probes]:
        """Probes to learn with, and a quarter for the meter: texts that the anchor samples."""
        return self.sampled().split(0.25, self.seed)

    @cached_property
    def public(self) -> list[Row]:
        """Rows of public texts, as many as of sampled ones without the meter's."""
        args, count = self.args, len(self.probes[0])
        return public_rows(
            Path(args.data_dir), self.tokenizer, count=count, length=args.length, seed=self.seed
        )

    def sampled(self, temperature: float = 1.0) -> Probes:
        """Return texts that the anchor samples, with its outputs on them.

        Args:
            temperature: Of the sampling.
        """
        args, name = self.args, "probes" if temperature == 1 else f"probes-{temperature:g}"
        file = self.folder / f"{name}.pt"
        if not file.exists():
            with self._precision():
                probes = Probes.generate(
                    self.anchor,
                    self.tokenizer,
                    count=args.sampled_texts,
                    max_length=args.length,
                    seed=self.seed,
                    temperature=temperature,
                    top_k=args.top_k,
                    batch_size=32,
                )
            torch.save(probes, file)
        kept: Probes = torch.load(file, weights_only=False)  # of our own
        return kept

    def learnt_from(self, method: LmMethod) -> Probes:
        """Return a method's probes: as many as are sampled, without the meter's.

        Args:
            method: Which says the temperature of the sampling, and the share of public texts.
        """
        probes = self.probes[0]
        if method.temperature != 1:
            probes = self.sampled(method.temperature).split(0.25, self.seed)[0]
        if not method.public:
            return probes
        taken = round(method.public * len(probes))
        rows = [*self.public[:taken], *probes.rows[: len(probes) - taken]]
        random.Random(self.seed).shuffle(rows)
        twice = round(method.repeated * len(rows))
        begin = self.tokenizer.bos_token_id
        texts = [row["input_ids"][: method.tokens or None] for row in rows]
        texts[:twice] = [said_twice(ids, begin) for ids in texts[:twice]]
        with self._precision():
            return Probes.from_dataset(
                self.anchor,
                [{"input_ids": ids} for ids in texts],
                pad_tokens,
                top_k=self.args.top_k,
                source="public",
            )

    def prior(self, method: LmMethod) -> ConsolidationPrior:
        """Return the prior of a method's texts, which are never the meter's.

        Args:
            method: Which says kind and rank; one of some rank is in bfloat16.
        """
        if method.rank:
            whole = self.prior(replace(method, rank=0))
            return whole.compress(rank=method.rank, dtype=torch.bfloat16)
        curvature = method.curvature or "kronecker"
        if curvature == "identity":
            return ConsolidationPrior.l2(self.anchor, task=OLD)
        public = f"-public-{method.public:g}" if method.public else ""
        folder = self.folder / f"prior-{curvature}{public}"
        if folder.exists():
            return ConsolidationPrior.from_pretrained(folder)
        args = CurvatureArguments(curvature=curvature, curvature_batch_size=8)
        rows = self.learnt_from(replace(method, temperature=1.0, repeated=0.0, tokens=0)).rows
        ids = [row["input_ids"] for row in rows][: self.args.curvature_texts]
        texts = [{"input_ids": text, "labels": text} for text in ids]
        prior = ConsolidationPrior.estimate(self.anchor, texts, self.collator, args, task=OLD)
        prior.save_pretrained(folder)
        return prior

    def trainer(self, method: LmMethod, model: nn.Module) -> Rival:
        """Return what trains a model.

        Args:
            method: How.
            model: At the anchor, maybe with an adapter.
        """
        return Rival(
            model,
            self._arguments(method),
            priors=[] if method.curvature is None else [self.prior(method)],
            probes=[] if method.probes is None else self.learnt_from(method),
            train_dataset=self.domain.train[: self.args.steps * self.args.batch_size],
            data_collator=self.collator,
            teacher=self.anchor if method.distilled else None,
            weight=method.distilled or method.mixed or 0.0,
            texts=self.public if method.mixed else (),
            rows=method.rows or self.args.probe_batch_size,
        )

    def _learn(self, method: LmMethod) -> tuple[PreTrainedModel, dict[str, Any]]:
        args, model = self.args, copy.deepcopy(self.anchor)
        learning: Any = model
        if method.adapter is not None:
            prior = self.prior(method) if method.adapter == "corda" else None
            learning = with_adapter(model, method.adapter, method.size, prior)
        trainer = self.trainer(method, learning)
        started, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        if method.adapter is not None:
            model = learning.merge_and_unload()
        names = ("step", "loss", "task_loss", "penalty", "probe_loss")
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
        return model.requires_grad_(True), {
            "seconds_per_step": round(seconds / args.steps, 3),
            "cpu_seconds_per_step": round(cpu / args.steps, 3),
            "log": [{name: entry[name] for name in names if name in entry} for entry in log],
        }

    def _arguments(self, method: LmMethod) -> ConsolidationArguments:
        args, is_board = self.args, self.args.domain == BOARD
        return ConsolidationArguments(
            str(self.folder / "trainer"),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate * method.rate,
            warmup_steps=args.steps // 10,
            weight_decay=0.1 if is_board else 0.0,
            lr_scheduler_type="cosine" if is_board else "linear",
            bf16=args.dtype == "bfloat16",
            use_cpu=args.device == "cpu" or not torch.accelerator.is_available(),
            seed=self.seed,
            logging_steps=max(1, args.steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            strengths=[method.strength] if method.curvature else None,
            damping=args.damping if method.damping is None else method.damping,
            penalty_every=args.penalty_every,
            penalty_dtype=args.dtype,
            probe_weight=method.probes or 0.0,
            probe_batch_size=method.rows or args.probe_batch_size,
            probe_every=method.probe_every or args.probe_every,
            probe_held_out=0.0,
        )

    def _precision(self) -> AbstractContextManager[Any]:
        is_mixed = self.args.dtype == "bfloat16"
        return torch.autocast(self.anchor.device.type, torch.bfloat16, enabled=is_mixed)


class Rival(ConsolidationTrainer):
    """What others add to the loss: a KL on the new texts themselves, or what public texts cost.

    Args:
        args: Of the trainer.
        teacher: The model before, of learning without forgetting; None for no such term.
        texts: Rows of public texts that are learnt among the new ones.
        rows: Of these in a step, which begins anew after the last.
        weight: Of the term, a mean over the positions that are read.
        kwargs: Of the trainer.
    """

    def __init__(
        self,
        *args: Any,
        teacher: nn.Module | None = None,
        texts: Sequence[Row] = (),
        rows: int = 1,
        weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.weight = teacher, weight
        self.texts, self.rows = texts, rows

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Return the loss and the term together.

        Args:
            model: The model.
            inputs: A batch.
            args: As in the Trainer.
            kwargs: As in the Trainer.
        """
        if not model.training or (self.teacher is None and not self.texts):
            return super().compute_loss(model, inputs, *args, **kwargs)
        if self.teacher is None:
            loss = cast(Tensor, super().compute_loss(model, inputs, *args, **kwargs))
            return loss + self.weight * model(**self._next_texts(loss.device)).loss
        kwargs["return_outputs"] = True
        mask, read = inputs["attention_mask"].bool(), dict(inputs)
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs)
        read.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            old = log_softmax(self.teacher.train(False)(**read).logits[mask].float(), -1)
        new = log_softmax(outputs.logits[mask].float(), -1)
        return loss + self.weight * kl_div(new, old, reduction="batchmean", log_target=True)

    def _next_texts(self, device: torch.device) -> dict[str, Tensor]:
        first = self.state.global_step * self.rows
        rows = [self.texts[place % len(self.texts)] for place in range(first, first + self.rows)]
        batch: dict[str, Tensor] = self.data_collator(rows)
        return {name: value.to(device) for name, value in batch.items()}
