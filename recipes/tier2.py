"""Tier 2: learn a new task without forgetting the old one.

With no argument, tier 1 is done on the spot on made-up mentions; then the new task is learnt with
no method, a penalty (EWC, KFC), probes, and both, side by side. Nothing is searched for: λ is the
Bayesian value, the probes' weight 1, their temperature 2; --forgetting_budget sets them instead:

    accelerate launch recipes/tier2.py

From a model and a prior that tier1.py made, without the old data (--old_datasets measures what is
forgotten where it is still at hand); both by folder, or by name on the Hugging Face Hub, where the
model's card leads to its prior:

    accelerate launch recipes/tier2.py --model runs/mine --priors runs/mine/prior \\
        --dataset prepared/new --old_datasets prepared/mine --output_dir runs/new
    accelerate launch recipes/tier2.py --model org/tier1 --push_to_hub org/tier2

On two processes of a CPU:

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \\
        --dynamo_backend no recipes/tier2.py
"""

import copy
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import PartialState
from transformers import TrainingArguments

from hf_kfc import ConsolidationConfig, ConsolidationPrior, CurvatureArguments, ranking
from hf_kfc.curvature import find_layers
from hf_kfc.errors import HfKfcError
from hf_kfc.files import refuse_foreign, replace_directory
from hf_kfc.training import PenaltySettings

DATA = Path(os.path.relpath(__file__)).parent / "data"


@dataclass
class Tier2Arguments:
    """What the new task is learnt from, and what holds the model to the old one."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "Model to go on from: its folder, ORG/NAME or ORG/NAME@REVISION (default: a "
            "new CNN learns the first of --old_datasets on the spot, by default made-up ones)."
        },
    )
    priors: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or repositories (default: those that --model's card leads to)."},
    )
    methods: list[str] = field(
        default_factory=lambda: ["ewc", "kfc", "probes", "kfc+probes"],
        metadata={
            "help": "What to compare on the spot: ewc, ekfac or kfc, probes, or both joined by +; "
            "the model of the last one is kept."
        },
    )
    output_dir: str = field(
        default="runs/tier2",
        metadata={"help": "Folder for the model, its prior (in prior/), table, picture and page."},
    )

    def __post_init__(self) -> None:
        for name in self.methods:
            if name != "probes" and name.removesuffix("+probes") not in ranking.METHODS:
                known = "ewc, ekfac, kfc, probes, or one of the first with +probes"
                raise HfKfcError(f"unknown method {name!r}; choose from {known}")
        if self.model is None and self.priors:
            raise HfKfcError("--priors is given without a model; give it as --model")


def main() -> None:
    """Read the command line, learn, and push what was learnt."""
    classes = (Tier2Arguments, ranking.DataArguments, ranking.OldDataArguments)
    classes += (ranking.LearningArguments, PenaltySettings)
    classes += (CurvatureArguments, ranking.ProbeArguments, ranking.PushArguments)
    own = {"dataset": str(DATA / "patients"), "probe_temperature": 2.0}
    parser = ranking.ScriptParser(*classes, description=__doc__, **own)
    args, data, old, learning, penalty, curvature, probing, push = parser.parse()
    refuse_foreign(Path(args.output_dir), "prior/config.json")  # only an older result is replaced
    push.check()
    state = PartialState(cpu=learning.use_cpu)
    if args.model is not None:  # at which commits they are now, the same in all processes
        args.model, args.priors = ranking.find_sources(args.model, args.priors)
    elif len(penalty.strengths or [0]) != 1:
        raise HfKfcError("several --strengths are of several --priors; give one")
    elif not old.old_datasets:
        old = ranking.OldDataArguments([str(DATA / "articles")])
    learning.settle(args.model)
    groups = {"tier": args, "data": data, "old": old, "learning": learning}
    groups |= {"penalty": penalty, "curvature": curvature, "probes": probing}
    settings = {name: asdict(group) for name, group in groups.items()}
    settings |= {"processes": state.num_processes}
    if not (push.push_to_hub and ranking.is_finished(args.output_dir, settings)):
        learn(args, data, old, learning, penalty, curvature, probing, settings)
    if push.push_to_hub and state.is_main_process:
        prior = ranking.push_tier(args.output_dir, push)
        print(f"published as {push.push_to_hub}, its prior as {prior}")
    state.wait_for_everyone()


def learn(args, data, old, learning, penalty, curvature, probing, settings) -> None:
    """Learn the new task with each method; save the table, the last model and its prior."""
    # What there is to learn, and from what. Bad input is refused here, before any training.
    priors = [ConsolidationPrior.from_pretrained(name) for name in args.priors]
    state = PartialState()
    options = {"data_dir": data.data_dir, "max_examples": data.max_examples, "seed": learning.seed}
    with state.main_process_first():  # the others find the examples in the cache
        splits = [ranking.load_examples(data.dataset, data.dataset_config, **options)]
        splits += [ranking.load_examples(dataset, **options) for dataset in old.old_datasets]
        if args.model is None:
            model, tokenizer = ranking.new_cnn(splits[1]["train"], seed=learning.seed)
        else:
            model, tokenizer = ranking.load_pretrained(args.model)
        find_layers(model, curvature.ignore)  # every parameter has a curvature, or is ignored
        ranking.record_settings(model, data, splits[0]["train"], learning.seed)  # for linkers
        new, *olds = (ranking.encode_splits(own, tokenizer, data.max_length) for own in splits)
        candidates = [probing.candidates(own["train"]) for own in splits[:2]]
    collator = ranking.CandidateCollator(tokenizer)
    model.to(state.device)

    def new_trainer(task, priors=(), probes=(), weight=0.0):
        """Make the Trainer of a copy of the model, held by priors and probes."""
        own = {"probe_weight": weight, "strengths": penalty.strengths if priors else None}
        config = ConsolidationConfig(**asdict(penalty) | own)
        with TemporaryDirectory() as unused:  # a Trainer makes a folder for checkpoints
            return ranking.RankingConsolidationTrainer(
                copy.deepcopy(model),
                TrainingArguments(unused, **asdict(learning), save_strategy="no"),
                priors=priors,
                probes=probes,
                consolidation=config,
                data_collator=collator,
                train_dataset=task["train"],
                compute_metrics=ranking.compute_metrics,
            )

    def measure(method, trainer):
        """Return the accuracies on the new task and on the old ones."""
        by_name = {name: own["test"] for name, own in zip(old.old_names, olds, strict=True)}
        return ranking.Outcome.of(method, trainer, new["test"], by_name)

    # Tier 1, unless it is done already; then what the model knows before it learns more.
    if args.model is None:
        trainer = new_trainer(olds[0])
        trainer.train()
        model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    untaught = new_trainer(new, priors)
    before = measure("before", untaught).old  # refuses what does not fit
    probes = [own.probes for own in priors if own.probes is not None]
    if args.model is None and candidates[1] is not None:
        probes = [probing.probes(model, candidates[1], collator, data.max_length)]
    methods = {"none": ([], 0.0)}  # probes of weight 0 only measure
    if args.model is not None:
        methods[ranking.method_name(priors)] = (priors, penalty.probe_weight)
    for name in args.methods if args.model is None else ():
        methods[name] = ([], penalty.probe_weight * name.endswith("probes"))
        if kind := ranking.METHODS.get(name.removesuffix("+probes")):
            task = {"task": old.old_names[0], "accuracy": before}
            estimate = replace(curvature, curvature=kind)
            prior = ranking.estimate_prior(model, olds[0]["train"], collator, estimate, **task)
            methods[name][0].append(prior.with_probes(*probes or [None]))

    # Tier 2: the new task with no method, then held by each.
    outcomes = []
    for method, (own, weight) in methods.items():
        trainer = new_trainer(new, own, probes, weight)
        trainer.train()
        outcomes.append(measure(method, trainer))

    # Save the last model with its own prior: the folder is either whole or as it was.
    model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    task = {"task": data.name, "accuracy": outcomes[-1].new}
    prior = ranking.estimate_prior(model, new["train"], collator, curvature, **task)
    prior = prior.with_probes(probing.probes(model, candidates[0], collator, data.max_length))
    old_task = " + ".join(old.old_names or [own.task for own in priors])
    known = [ranking.Remembered.of(own) for own in methods[method][0]]
    lost = ranking.regressions_of_trainers(untaught, trainer, old.old_names, splits[1:], olds)
    comparison = ranking.Comparison(old_task, data.name, before, outcomes, settings, known, lost)
    if state.is_main_process:
        with replace_directory(Path(args.output_dir)) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            prior.save_pretrained(partial / "prior")
            comparison.save(partial)
        print(f"\n{comparison.report()}\n\nsaved in {args.output_dir}")
    state.wait_for_everyone()


if __name__ == "__main__":
    try:
        main()
    except HfKfcError as error:  # what is wrong with the input, in one line
        sys.exit(f"error: {error}")
