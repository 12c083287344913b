"""Publishing a finished tier: its model, its prior, and the links between the two."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi

from hf_kfc.errors import ConsolidationError
from hf_kfc.hub import MODEL_FILES, hub_errors_as, push_card, push_model
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.card import prior_card
from hf_kfc.priors.privacy import MIN_EXAMPLES, without_rare_inputs

from .figures import require_matplotlib, save_prediction_figure
from .methods import NAMES
from .model_card import EVAL_RESULTS, eval_results, model_card
from .prediction import Prediction
from .processes import process_state, shared
from .results import RESULTS_NAME, RESULTS_TABLE

__all__ = ["PublishArguments", "Target", "publish"]

_PICTURE = "prediction.png"
# Results tell the folders of this machine, and the cards have what is in them.
_FILES = [name for name in MODEL_FILES if name not in (RESULTS_NAME, RESULTS_TABLE)]


@dataclass(frozen=True)
class Target:
    """Where a tier goes.

    Args:
        model: Repository of the model.
        prior: Repository of its prior.
    """

    model: str
    prior: str


@dataclass
class PublishArguments:
    """Whether and where the model and its prior are published on the Hugging Face Hub."""

    push_to_hub: bool = field(
        default=False,
        metadata={"help": "Publish the model and its prior; run it again if it was stopped."},
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={
            "help": "Repository of the model, as ORG/NAME; that of the prior has -kfc (or the "
            "method's name) at the end (default: your user name and the name of the output folder)."
        },
    )
    hub_private_repo: bool = field(
        default=True, metadata={"help": "Whether only their members may see the repositories."}
    )
    hub_dataset_id: str | None = field(
        default=None,
        metadata={
            "help": "Data set on the Hub that has the tasks as its configurations; the results "
            "then name it."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of model and prior, as the Hub calls it."}
    )
    data_statement: str | None = field(
        default=None,
        metadata={"help": "What the cards say of the data: whence it is, and on what terms."},
    )
    min_examples: int = field(
        default=MIN_EXAMPLES,
        metadata={
            "help": "In how many examples a token must have been seen for the published prior to "
            "cover it."
        },
    )

    def __post_init__(self) -> None:
        if self.min_examples < 0:
            raise ConsolidationError(f"min_examples is {self.min_examples}; give at least 0")

    def target(self, directory: Path, curvature: str) -> Target | None:
        """Choose the repositories, before hours of work that could not be published.

        Args:
            directory: The output folder.
            curvature: Kind of the prior.

        Returns:
            Their names; None if nothing is to be published.

        Raises:
            HfKfcError: The Hub is out of reach or takes no token.
        """
        if not self.push_to_hub:
            return None
        require_matplotlib()
        model = shared(lambda: _choose(self.hub_model_id, directory))
        return Target(model, f"{model}-{NAMES[curvature]}")


def publish(directory: Path, args: PublishArguments, target: Target | None) -> None:
    """Publish what a tier left in its folder, or what is missing of it on the Hub.

    The model goes first, in one commit; then the prior, whose anchor points at that commit; then
    the model's card, which names the prior. Where it is stopped it goes on when called again.

    Args:
        directory: The folder.
        args: How.
        target: Where; None leaves all as it is.

    Raises:
        HfKfcError: The Hub refused or is out of reach; every repository is left whole.
    """
    state = process_state()
    if target is not None and state.is_main_process:
        _publish(directory, args, target)
    state.wait_for_everyone()


def _choose(model: str | None, directory: Path) -> str:
    with hub_errors_as(
        "--push_to_hub: the Hub does not tell who you are ({reason}); log in with "
        "'hf auth login' or set HF_TOKEN"
    ):
        user = HfApi(library_name="hf_kfc").whoami()["name"]
    name = model or directory.resolve().name
    return name if "/" in name else f"{user}/{name}"


def _publish(directory: Path, args: PublishArguments, target: Target) -> None:
    extra = {}
    if args.hub_dataset_id is not None:
        extra[EVAL_RESULTS] = eval_results(directory, args.hub_dataset_id).encode()
    pushed = push_model(
        directory,
        target.model,
        card=model_card(directory, target.model, args, prior=None),
        files=_FILES,
        extra=extra,
        private=args.hub_private_repo,
        commit_message="Publish the model",
    )
    prior = _push_prior(directory, args, target, pushed.commit)
    card = model_card(directory, target.model, args, prior)
    push_card(target.model, card, commit_message="Name its prior", parent=pushed.commit)
    print(f"published as {target.model}, its prior as {prior}")  # noqa: T201


def _push_prior(directory: Path, args: PublishArguments, target: Target, at: str) -> str:
    """Publish the prior, its anchor being the model at a commit; return where it is."""
    prior = ConsolidationPrior.from_pretrained(directory / "prior")
    # Without the commit, which is not the same when this is done again.
    prior.provenance = replace(prior.provenance, base_model=target.model, base_revision=None)
    public = without_rare_inputs(prior, args.min_examples)
    prediction = Prediction.load(directory)
    anchor = f"{target.model}@{at}"
    card = prior_card(
        public,
        target.prior,
        base_model=anchor,
        prediction=prediction.report(_PICTURE),
        license_id=args.license,
        data_statement=args.data_statement,
    )
    return str(
        prior.push_to_hub(
            target.prior,
            private=args.hub_private_repo,
            min_examples=args.min_examples,
            anchor=anchor,
            card=card,
            pictures={_PICTURE: _picture(prediction)},
        )
    )


def _picture(prediction: Prediction) -> bytes:
    with TemporaryDirectory(prefix="hf_kfc-") as folder:
        save_prediction_figure(prediction, Path(folder) / _PICTURE)
        return (Path(folder) / _PICTURE).read_bytes()
