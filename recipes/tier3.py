"""Tier 3: learn a third task without forgetting the first two.

From a model on the Hugging Face Hub that tier2.py made; its card leads to the priors of all tiers:

    accelerate launch recipes/tier3.py --model org/tier2 --dataset org/ranking \\
        --dataset_config third --push_to_hub org/tier3

From folders, the priors have to be named, those of both earlier tasks; with no --dataset, made-up
mentions are learnt; --old_datasets measures what is forgotten where old data is still at hand:

    accelerate launch recipes/tier3.py --model runs/tier2 \\
        --priors runs/tier1/prior runs/tier2/prior \\
        --old_datasets recipes/data/articles recipes/data/patients
"""

import copy
import os
import sys
from dataclasses import asdict, dataclass, field
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
class Tier3Arguments:
    """What the new task is learnt from, and what holds the model to the earlier ones."""

    model: str = field(
        metadata={"help": "Model of tier 2: its folder, ORG/NAME or ORG/NAME@REVISION."}
    )
    priors: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Priors of all earlier tasks: folders or repositories (default: those that the "
            "card of --model leads to, from the first tier to the last)."
        },
    )
    output_dir: str = field(
        default="runs/tier3",
        metadata={"help": "Folder for the model, its prior (in prior/), table, picture and page."},
    )


def main() -> None:
    """Read the command line, learn, and push what was learnt."""
    classes = (Tier3Arguments, ranking.DataArguments, ranking.OldDataArguments)
    classes += (ranking.LearningArguments, PenaltySettings)
    classes += (CurvatureArguments, ranking.ProbeArguments, ranking.PushArguments)
    own = {"dataset": str(DATA / "notes"), "probe_temperature": 2.0}
    parser = ranking.ScriptParser(*classes, description=__doc__, **own)
    args, data, old, learning, penalty, curvature, probing, push = parser.parse()
    refuse_foreign(Path(args.output_dir), "prior/config.json")  # only an older result is replaced
    push.check()
    state = PartialState(cpu=learning.use_cpu)
    # At which commits they are now, the same in all processes.
    args.model, args.priors = ranking.find_sources(args.model, args.priors)
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
    """Learn the new task with no method and with the priors; save table, model and its prior."""
    # What there is to learn, and from what. Bad input is refused here, before any training.
    priors = [ConsolidationPrior.from_pretrained(name) for name in args.priors]
    state = PartialState()
    options = {"data_dir": data.data_dir, "max_examples": data.max_examples, "seed": learning.seed}
    with state.main_process_first():  # the others find the examples in the cache
        splits = [ranking.load_examples(data.dataset, data.dataset_config, **options)]
        splits += [ranking.load_examples(dataset, **options) for dataset in old.old_datasets]
        model, tokenizer = ranking.load_pretrained(args.model)
        find_layers(model, curvature.ignore)  # every parameter has a curvature, or is ignored
        ranking.record_settings(model, data, splits[0]["train"], learning.seed)  # for linkers
        new, *olds = (ranking.encode_splits(own, tokenizer, data.max_length) for own in splits)
        candidates = probing.candidates(splits[0]["train"])
    collator = ranking.CandidateCollator(tokenizer)
    model.to(state.device)

    def new_trainer(priors):
        """Make the Trainer of a copy of the model, held by priors."""
        config = ConsolidationConfig(**asdict(penalty)) if priors else None
        with TemporaryDirectory() as unused:  # a Trainer makes a folder for checkpoints
            return ranking.RankingConsolidationTrainer(
                copy.deepcopy(model),
                TrainingArguments(unused, **asdict(learning), save_strategy="no"),
                priors=priors,
                consolidation=config,
                data_collator=collator,
                train_dataset=new["train"],
                compute_metrics=ranking.compute_metrics,
            )

    def measure(method, trainer):
        """Return the accuracies on the new task and on the old ones."""
        by_name = {name: own["test"] for name, own in zip(old.old_names, olds, strict=True)}
        return ranking.Outcome.of(method, trainer, new["test"], by_name)

    # With no method, then held by the priors of all earlier tasks.
    untaught = new_trainer(priors)
    before = measure("before", untaught).old  # also refuses priors that do not fit
    outcomes = []
    for method, own in {"none": [], ranking.method_name(priors): priors}.items():
        trainer = new_trainer(own)
        trainer.train()
        outcomes.append(measure(method, trainer))

    # Save the consolidated model with its own prior: the folder is either whole or as it was.
    model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    task = {"task": data.name, "accuracy": outcomes[-1].new}
    prior = ranking.estimate_prior(model, new["train"], collator, curvature, **task)
    prior = prior.with_probes(probing.probes(model, candidates, collator, data.max_length))
    old_task = " + ".join(old.old_names or [own.task for own in priors])
    remembered = [ranking.Remembered.of(own) for own in priors]
    found = ranking.regressions_of_trainers(untaught, trainer, old.old_names, splits[1:], olds)
    told = (before, outcomes, settings, remembered, found)
    comparison = ranking.Comparison(old_task, data.name, *told)
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
