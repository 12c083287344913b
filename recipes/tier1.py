"""Tier 1: learn a task, and keep a prior of it for later tiers.

    accelerate launch recipes/tier1.py
    accelerate launch recipes/tier1.py --dataset prepared/mine --output_dir runs/mine
    accelerate launch recipes/tier1.py --dataset org/ranking --dataset_config psytar \\
        --model google-bert/bert-base-uncased --push_to_hub org/psytar

A data set is a folder that recipes/prepare.py made of your corpus, a data set on the Hub, or the
name of a built-in task with --data_dir; with none, made-up mentions are learnt. The output folder
then holds a model that from_pretrained loads, its tokenizer, results, and in prior/ all that a
later tier needs to remember the task without its data: where the model stands, and probes, which
are names of concepts with what it says of them. With --push_to_hub model and prior go to the
Hugging Face Hub too, where they are private. An estimate of the prior that was killed goes on where
it was when the same command is run again.
"""

import copy
import hashlib
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import PartialState
from transformers import TrainingArguments

from hf_kfc import CurvatureArguments, ranking
from hf_kfc.curvature import find_layers
from hf_kfc.curvature.checkpoint import parameters_digest
from hf_kfc.errors import HfKfcError
from hf_kfc.files import refuse_foreign, replace_directory

DATA = Path(os.path.relpath(__file__)).parent / "data"


@dataclass
class Tier1Arguments:
    """Which model learns, and where it goes."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "An encoder or a saved ranker to begin from: its folder, ORG/NAME or "
            "ORG/NAME@REVISION (default: a small new CNN)."
        },
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of a new CNN."})
    vocab_size: int = field(default=8000, metadata={"help": "Size of a new CNN's vocabulary."})
    output_dir: str = field(
        default="runs/tier1",
        metadata={"help": "Folder for the model, its prior (in prior/) and the results."},
    )


def main() -> None:
    """Read the command line, learn, and push what was learnt."""
    classes = (Tier1Arguments, ranking.DataArguments, ranking.LearningArguments)
    classes += (CurvatureArguments, ranking.ProbeArguments, ranking.PushArguments)
    parser = ranking.ScriptParser(*classes, description=__doc__, dataset=str(DATA / "articles"))
    args, data, learning, curvature, probing, push = parser.parse()
    refuse_foreign(Path(args.output_dir), "prior/config.json")  # only an older result is replaced
    push.check()
    learning.settle(args.model)
    state = PartialState(cpu=learning.use_cpu)
    groups = {"tier": args, "data": data, "learning": learning, "curvature": curvature}
    groups |= {"probes": probing}
    settings = {name: asdict(group) for name, group in groups.items()}
    settings |= {"processes": state.num_processes}
    if not (push.push_to_hub and ranking.is_finished(args.output_dir, settings)):
        learn(args, data, learning, curvature, probing, settings)
    if push.push_to_hub and state.is_main_process:
        prior = ranking.push_tier(args.output_dir, push)
        print(f"published as {push.push_to_hub}, its prior as {prior}")
    state.wait_for_everyone()


def learn(args, data, learning, curvature, probing, settings) -> None:
    """Learn the task, measure, estimate the prior with its probes, and save all of it."""
    # The examples and the model. Bad input is refused here, before any training.
    state = PartialState()
    with state.main_process_first():  # the others find the examples in the cache
        splits = ranking.load_examples(
            data.dataset,
            data.dataset_config,
            data_dir=data.data_dir,
            max_examples=data.max_examples,
            seed=learning.seed,
        )
        if args.model is None:
            sizes = {"hidden_size": args.hidden_size, "vocab_size": args.vocab_size}
            model, tokenizer = ranking.new_cnn(splits["train"], **sizes, seed=learning.seed)
        else:
            model, tokenizer = ranking.load_pretrained(args.model, seed=learning.seed)
        find_layers(model, curvature.ignore)  # every parameter has a curvature, or is ignored
        ranking.record_settings(model, data, splits["train"], learning.seed)  # for linkers
        examples = ranking.encode_splits(splits, tokenizer, data.max_length)
        candidates = probing.candidates(splits["train"])
    collator = ranking.CandidateCollator(tokenizer)
    model.to(state.device)

    # Learn and measure.
    with TemporaryDirectory() as unused:  # a Trainer makes a folder for checkpoints
        trainer = ranking.RankingTrainer(
            copy.deepcopy(model),
            TrainingArguments(unused, **asdict(learning), save_strategy="no"),
            data_collator=collator,
            train_dataset=examples["train"],
            compute_metrics=ranking.compute_metrics,
        )
    trainer.train()
    outcome = ranking.Outcome.of("none", trainer, examples["test"], old={})
    comparison = ranking.Comparison("", data.name, None, [outcome], settings)

    # The prior, while the data is there: of the model itself, without the Trainer's wrappers.
    model.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
    output = Path(args.output_dir).absolute()
    key = hashlib.sha256(f"{curvature} {parameters_digest(model)}".encode()).hexdigest()[:12]
    prior = ranking.estimate_prior(
        model,
        examples["train"],
        collator,
        curvature,
        task=data.name,
        accuracy=outcome.new,
        checkpoint_dir=output.with_name(f".{output.name}.curvature-{key}"),
    )
    prior = prior.with_probes(probing.probes(model, candidates, collator, data.max_length))

    # Save: the folder is either whole or as it was.
    if state.is_main_process:
        with replace_directory(output) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            prior.save_pretrained(partial / "prior")
            comparison.save(partial)
        for left in output.parent.glob(f".{output.name}.curvature-*"):  # of runs that were killed
            shutil.rmtree(left, ignore_errors=True)
        print(f"\n{comparison.table()}\n\nsaved in {args.output_dir}")
    state.wait_for_everyone()


if __name__ == "__main__":
    try:
        main()
    except HfKfcError as error:  # what is wrong with the input, in one line
        sys.exit(f"error: {error}")
