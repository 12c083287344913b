"""One estimate at work: how the layers are used, and the passes over the examples."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from tqdm.auto import tqdm

from ..curvature_arguments import Labels
from ..errors import CurvatureError
from .accumulators import Accumulator, LayerBatch, LayerChangedError, valid_positions
from .alone import Seen, padded, taken_out
from .blocks import Curvature
from .capture import Use, capture, differentiate
from .checkpoint import CurvatureCheckpoint, Sums, identity_of
from .discovery import Layer, by_reason, refuse
from .factors import has_factors, make_accumulators, rotate_accumulators
from .fallback import PerExampleSquares
from .gradient_check import (
    MIXED,
    check_gradients,
    mixed_layers,
    reaches_what_counts,
    to_teach,
)
from .likelihood import logit_gradients
from .modes import learning
from .objective import default_forward
from .own_loss import refuse_other_loss
from .positions import PositionsError
from .rare_tokens import RareTokens, labels_are_tokens
from .reading import Reading
from .sides import find_sides

__all__ = ["MOST_SCORES", "Estimate"]

logger = logging.getLogger(__name__)

MOST_SCORES = 8192
"""Classes up to which an output layer's G is a matrix: 256 MiB in float32."""
NEVER = "never called with a tensor in the forward pass"
TOGETHER = "what the model makes of an example depends on its padding or on the others of its batch"
DEPENDS = "the model's computation depends on its input"
OTHER_MASK = (
    "the scores of {} depend on no position that counts by its mask, but on others; attention_mask "
    "is to be 1 at tokens and 0 at padding, or give `position_mask=` a function that says which "
    "positions count"
)


@dataclass
class Estimate(Reading):
    """What all passes of one estimate have in common."""

    without_rule: dict[str, str]
    """Why parameters have their diagonal by one example at a time."""
    diagonal: dict[str, str] = field(default_factory=dict)
    """Why layers with factors have their diagonal only."""
    scores: set[str] = field(default_factory=set)
    """Layers whose outputs are the scores of a vocabulary too large for a matrix of them."""
    idle: set[tuple[str, int]] = field(default_factory=set)
    """Calls of layers, by name and number, that the scores do not depend on."""
    labels_are_tokens: bool = False

    def estimate(self, ignored: Sequence[str], folder: Path | None, seconds: float) -> Curvature:
        """Find out how the layers are used, then sum over the examples, once or twice."""
        args, count = self.args, len(self.indices)
        uses = self.discover()
        if args.min_token_examples and self.rare is None:
            self.rare = self.count_tokens()
        accumulators = make_accumulators(
            self.layers,
            uses,
            args.curvature,
            args.sharing,
            args.products,
            self.diagonal,
            self.scores,
        )
        rest = PerExampleSquares(self.model, self.without_rule) if self.without_rule else None
        checkpoint = None if folder is None else self.checkpoint(folder, seconds)
        try:
            self.accumulate(accumulators, "curvature", checkpoint, rest)
            if args.curvature == "kronecker_eigen":
                rotated = rotate_accumulators(accumulators, count)
                if rotated:
                    self.accumulate(rotated, "eigenvalues", checkpoint)
                accumulators |= rotated
        except LayerChangedError:
            if checkpoint:
                checkpoint.clear()  # its sums are of other layers
            raise
        if checkpoint:
            checkpoint.clear()
        blocks = [
            layer.block(accumulators[layer.name].operator(count), sums.input_examples)
            for layer, sums in ((layer, accumulators[layer.name]) for layer in self.layers)
        ]
        blocks += [] if rest is None else rest.blocks(count)
        order = {name: number for number, (name, _) in enumerate(self.model.named_parameters())}
        blocks.sort(key=lambda block: order[next(iter(block.shapes))])
        return Curvature(tuple(blocks), count, tuple(ignored))

    def count_tokens(self) -> RareTokens:
        """Find the tokens of which no sum is to be made, by one pass over the examples."""
        rank, world = _rank_and_world()
        mine = self._batches(self.indices[rank::world])
        batches = ((len(keys), batch) for keys, _, batch in mine)
        return RareTokens.count(batches, self.args, self.model, self.labels_are_tokens)

    def give_up(self, change: LayerChangedError) -> None:
        """Leave a layer's rule, its factors, or batches, and begin anew.

        Raises:
            CurvatureError: It is not to be.
        """
        if not change.name:
            logger.warning(
                "%s, so the estimate begins anew with one example at a time (of %s); it is slower",
                change,
                type(self.model).__name__,
            )
            self.args = replace(self.args, curvature_batch_size=1)
            vars(self).pop("_first_rows", None)
            return
        if self.args.fallback == "refuse":
            raise CurvatureError(
                f"{change}; list its parameters in `ignore=[...]` to let them move freely"
            ) from change
        logger.info("%s; the estimate begins anew without its rule", change)
        if change.diagonal:
            self.diagonal[change.name] = change.reason
        else:
            self._leave_rules({change.name: change.reason})

    def tell(self, curvature: Curvature) -> None:
        """Log what covers how many parameters; refuse a curvature of nothing."""
        if not any(float(b.operator.trace(b.shape)) for b in curvature.blocks):
            raise CurvatureError(
                "the gradient of every example by itself is 0, so F is 0 everywhere and would hold "
                "nothing: a loss over in-batch negatives tells nothing of one example alone, nor "
                "do labels of -100; give `forward=` a function that scores each example by itself"
            )
        covered = curvature.coverage
        total = sum(covered.values())
        told = ", ".join(f"{kind} {number / total:.1%}" for kind, number in covered.items())
        logger.info("curvature of %d parameters: %s", total, told)
        for name, reason in self.diagonal.items():
            logger.info("layer '%s' has its diagonal only: %s", name, reason)
        if self.without_rule:
            sizes = {n: p.numel() for n, p in self.model.named_parameters()}
            share = sum(sizes[name] for name in self.without_rule) / total
            logger.warning(
                "%d parameters without a rule (%.1f %% of all entries) have their exact diagonal, "
                "by a forward and backward pass of every example alone: %s",
                len(self.without_rule),
                100 * share,
                by_reason(self.without_rule),
            )

    def discover(self) -> dict[str, list[Use]]:
        """Run two examples to see which layers are used, how often, on what, and that it is all.

        They are read as they are, rare tokens too: nothing that is summed is made of them.
        """
        batch, examples = self._first_batch()
        if self.has_sides:
            self.sides = find_sides(self.model, self.layers, lambda: self._forward(batch))
        positions = self._positions(batch, examples)
        parameters = dict(self.model.named_parameters())
        taught = [p for layer in self.layers for p in layer.parameters.values()]
        with learning([*taught, *(parameters[name] for name in self.without_rule)]):
            with torch.enable_grad(), capture(self.layers, positions) as uses:
                outputs = self._forward(batch)
            self.labels_are_tokens = labels_are_tokens(self.model, outputs.logits, outputs.labels)
            called = [layer for layer in self.layers if uses[layer.name]]
            if (classes := outputs.logits.shape[-1]) > MOST_SCORES:
                self.scores = {layer.name for layer in called if layer.shape[0] == classes}
            wrong = {name: NEVER for name, calls in uses.items() if not calls}
            found, self.idle = check_gradients(called, outputs.logits, uses, examples)
            wrong |= found
            sound = [layer for layer in called if layer.name not in wrong]
            seen = Seen(uses, outputs)
            self._refuse_company(batch, seen, self._first_rows, sound)
            if self.forward is default_forward:
                with self._errors_told(batch):
                    refuse_other_loss(self.model, self.collate.read(batch), outputs)
        if wrong:
            self._leave_rules(wrong)
        for layer in self.layers:
            if not has_factors(layer, self.args.curvature, self.args.sharing):
                continue
            try:
                for use in uses[layer.name]:
                    valid_positions(layer, use)
            except PositionsError as error:
                if self.args.fallback == "refuse":
                    raise
                self.diagonal[layer.name] = str(error)
        return {layer.name: self._at_work(uses)[layer.name] for layer in self.layers}

    def _at_work(self, uses: Mapping[str, list[Use]]) -> dict[str, list[Use]]:
        """Leave out calls that the scores do not depend on, of layers that have others."""
        return {
            name: [use for n, use in enumerate(own) if (name, n) not in self.idle] or own
            for name, own in uses.items()
        }

    def _refuse_company(
        self,
        batch: Mapping[str, Any],
        seen: Seen,
        rows: Sequence[Any],
        layers: Sequence[Layer],
        also: Collection[int] = (),
        most: int = 1,
    ) -> None:
        """Make sure that the last example, and one with most padding, are in a batch as alone.

        What a batch does to one example for its padding it does most to this one.

        Args:
            batch: As it was read.
            seen: What the model made of it.
            rows: Its examples.
            layers: Whose outputs are compared too.
            also: Places of others that are to be the same.
            most: How many with padding are to be.

        Raises:
            LayerChangedError: They are not.
            CurvatureError: Not even one alone is twice the same.
        """
        with torch.random.fork_rng(devices=[]):  # a collator's draws are as without this check
            singles = [self._single(row) for row in rows]
        for place in sorted({len(rows) - 1, *padded(singles)[:most], *also}):
            if (alone := taken_out(batch, place, singles[place])) is None:
                continue
            with torch.no_grad(), capture(layers, self._positions(alone, 1)) as uses:
                outputs = self._forward(alone)
            if not seen.differs(Seen(uses, outputs), place, layers):
                continue
            if self.args.curvature_batch_size > 1:
                raise LayerChangedError("", TOGETHER)
            raise CurvatureError(
                f"{type(self.model).__name__} makes something else of the same example each time, "
                "in evaluation mode too; let it draw nothing at random there"
            )

    def _leave_rules(self, wrong: Mapping[str, str]) -> None:
        left = [layer for layer in self.layers if layer.name in wrong]
        reasons = {name: wrong[layer.name] for layer in left for name in layer.parameters}
        if self.args.fallback == "refuse":
            refuse(reasons)
        self.without_rule |= reasons
        self.layers = [layer for layer in self.layers if layer.name not in wrong]

    def checkpoint(self, directory: Path, seconds: float) -> CurvatureCheckpoint:
        """Find out what this estimate has in a folder."""
        batch, _ = self._first_batch()
        functions = (self.forward, self.position_mask)
        identity = identity_of(
            self.model,
            self.args,
            self.layers,
            self.without_rule,
            self.dataset,
            self.indices,
            batch,
            functions,
        )
        return CurvatureCheckpoint(directory, identity, *_rank_and_world(), seconds)

    def accumulate(
        self,
        accumulators: Mapping[str, Accumulator],
        what: str,
        checkpoint: CurvatureCheckpoint | None = None,
        rest: PerExampleSquares | None = None,
    ) -> None:
        """Pass over this process's share of the data once, then sum over processes."""
        sums: dict[str, Sums] = dict(accumulators) | ({} if rest is None else {"": rest})
        failure: Exception | None = None
        try:
            self._accumulate_share(accumulators, sums, what, checkpoint, rest)
        except Exception as error:
            failure = error
        self._fail_together(failure)
        for own in sums.values():
            for total in own.totals():
                if _rank_and_world()[1] > 1:
                    dist.all_reduce(total)

    def _accumulate_share(
        self,
        accumulators: Mapping[str, Accumulator],
        sums: Mapping[str, Sums],
        what: str,
        checkpoint: CurvatureCheckpoint | None,
        rest: PerExampleSquares | None,
    ) -> None:
        rank, world = _rank_and_world()
        mine, everything = self.indices[rank::world], len(self.indices)
        done = checkpoint.restore(what, sums) if checkpoint else 0
        with tqdm(
            total=everything,
            initial=min(done * world, everything),
            desc=what,
            unit=" examples",
            disable=rank != 0,
        ) as bar:
            for number, (keys, rows, batch) in enumerate(self._batches(mine[done:]), start=1):
                if accumulators:
                    self._accumulate_batch(accumulators, keys, rows, batch, number)
                if rest is not None:
                    self._accumulate_rest(rest, keys, rows)
                done += len(keys)
                # Of all processes: they keep pace.
                bar.update(min(done * world, everything) - bar.n)
                if checkpoint:
                    checkpoint.keep(what, sums, done, last=done == len(mine))

    def _fail_together(self, failure: Exception | None) -> None:
        """Raise what went wrong in any process in all of them: none waits for another for ever.

        Args:
            failure: What went wrong in this one; None if nothing did.

        Raises:
            LayerChangedError: The same in all, after which they begin anew together.
            CurvatureError: Another process cannot go on.
            Exception: This one.
        """
        world, told = _rank_and_world()[1], [_told(failure)]
        if world > 1:
            told = told * world
            dist.all_gather_object(told, _told(failure))
        for rank, own in enumerate(told):
            if own is not None and own[0] is None:
                raise failure or CurvatureError(f"process {rank} could not go on: {own[1]}")
        for name, reason, diagonal in filter(None, told):
            raise LayerChangedError(name or "", reason, diagonal=diagonal) from failure

    @torch.no_grad()
    def _accumulate_batch(
        self,
        accumulators: Mapping[str, Accumulator],
        keys: Sequence[int],
        rows: Sequence[Any],
        batch: Mapping[str, Tensor],
        number: int,
    ) -> None:
        positions, examples = self._positions(batch, len(keys)), len(keys)
        layers = [layer for layer in self.layers if layer.name in accumulators]
        with torch.enable_grad(), capture(layers, positions) as every:
            outputs = self._forward(batch)
        uses = self._at_work(every)
        if number.bit_count() == 1:  # batches 1, 2, 4, 8 and so on
            # A choice of a few largest may fall otherwise for some that have padding.
            also, most = ([0], 8) if number == 1 else ([], 1)
            self._refuse_company(batch, Seen(every, outputs), rows, layers, also, most)
        self._refuse_changes(layers, uses, examples)
        if (taught := to_teach(number, examples)) is not None:
            for layer in mixed_layers(layers, outputs.logits, uses, taught):
                raise LayerChangedError(layer.name, f"{MIXED}: {DEPENDS}")
        batches = {layer.name: LayerBatch(layer, uses[layer.name], examples) for layer in layers}
        for name, own in batches.items():
            try:
                accumulators[name].add_inputs(own)
            except PositionsError as error:
                raise LayerChangedError(name, str(error), diagonal=True) from error
        counting: list[bool] = []

        def add(name: str, gradients: list[Tensor | None]) -> None:
            own = batches[name]
            own.set_gradients(gradients)
            accumulators[name].add_gradients(own)
            if number == 1 and self._has_factors(own.layer):
                counting.extend(reaches_what_counts(own))
            own.set_gradients([None] * len(gradients))

        kind = Labels(self.args.labels)
        for v in logit_gradients(outputs, kind, keys, self.args.curvature_seed):
            differentiate(outputs.logits, v, uses, add, retain_graph=kind is Labels.EXACT)
        if counting and not any(counting):
            raise CurvatureError(OTHER_MASK.format(type(self.model).__name__))

    def _has_factors(self, layer: Layer) -> bool:
        args = self.args
        return layer.name not in self.diagonal and has_factors(layer, args.curvature, args.sharing)

    def _refuse_changes(
        self, layers: Sequence[Layer], uses: Mapping[str, Sequence[Use]], examples: int
    ) -> None:
        """Make sure that a later batch is used as the first examples were.

        Args:
            layers: The layers.
            uses: Of this batch.
            examples: In this batch.
        """
        for layer in layers:
            rows = [
                torch.Size(layer.rule.leading(use.module, use.output)).numel()
                for use in uses[layer.name]
            ]
            if not rows:
                reason = "it was called for the first examples but not for a later batch"
                raise LayerChangedError(layer.name, f"{reason}: {DEPENDS}")
            if any(not number or number % examples for number in rows):
                raise LayerChangedError(layer.name, MIXED)

    def _accumulate_rest(
        self, rest: PerExampleSquares, keys: Sequence[int], rows: Sequence[Any]
    ) -> None:
        for key, row in zip(keys, rows, strict=True):
            rest.add(
                partial(self._forward, self._seen(self._single(row))),
                Labels(self.args.labels),
                key,
                self.args.curvature_seed,
            )


def _told(failure: Exception | None) -> tuple[str | None, str, bool] | None:
    """Say a failure in what processes can send: layer, reason, whether its diagonal is right."""
    if isinstance(failure, LayerChangedError):
        return failure.name, failure.reason, failure.diagonal
    return None if failure is None else (None, str(failure), False)


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
