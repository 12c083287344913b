"""Publishing a finished tier: its model, its prior, and the links between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.hf_api import RepoSibling

from hf_kfc.errors import ConsolidationError, HfKfcError
from hf_kfc.hub_errors import HUB_FAILURES, reason_of
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.card import prior_card
from hf_kfc.priors.files import holds_tensors
from hf_kfc.priors.privacy import MIN_EXAMPLES, without_rare_inputs

from .figures import require_matplotlib, save_prediction_figure
from .methods import NAMES
from .model_card import EVAL_RESULTS, eval_results, model_card
from .prediction import PREDICTION_NAME, Prediction
from .processes import process_state, shared
from .results import RESULTS_NAME, RESULTS_TABLE

__all__ = ["PublishArguments", "Target", "publish"]

_CARD = "README.md"
_PICTURE = "prediction.png"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
# They tell the folders of this machine, and the cards have what is in them.
_NOT_PUBLISHED = {RESULTS_NAME, RESULTS_TABLE, PREDICTION_NAME}


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
        try:
            _publish(directory, args, target)
        except HfKfcError:
            raise
        except HUB_FAILURES as error:
            raise HfKfcError(
                f"{target.model}: {directory} is not published, or only a part of it "
                f"({reason_of(error)}); run the same again, what was done is not done twice"
            ) from error
    state.wait_for_everyone()


def _choose(model: str | None, directory: Path) -> str:
    try:
        user = HfApi(library_name="hf_kfc").whoami()["name"]
    except HUB_FAILURES as error:
        raise HfKfcError(
            f"--push_to_hub: the Hub does not tell who you are ({reason_of(error)}); log in with "
            "'hf auth login' or set HF_TOKEN"
        ) from error
    name = model or directory.resolve().name
    return name if "/" in name else f"{user}/{name}"


def _publish(directory: Path, args: PublishArguments, target: Target) -> None:
    api = HfApi(library_name="hf_kfc")
    api.create_repo(target.model, private=args.hub_private_repo, exist_ok=True)
    head = api.model_info(target.model, files_metadata=True)
    _refuse(head, target.model, args.hub_private_repo)
    at = _commit_model(api, head, directory, args, target)
    prior = _push_prior(directory, args, target, at)
    card = model_card(directory, target.model, args, prior)
    _commit_card(api, target.model, at, card)
    print(f"published as {target.model}, its prior as {prior}")  # noqa: T201


def _refuse(head: ModelInfo, repo_id: str, private: bool) -> None:
    if any(holds_tensors(file.rfilename) for file in head.siblings or []):
        raise HfKfcError(f"{repo_id} holds a prior; give the model another --hub_model_id")
    if head.private != private:
        there = "public" if head.private is False else "private"
        option = "--no_hub_private_repo" if private else "--hub_private_repo"
        raise HfKfcError(f"{repo_id} is there and {there}; give {option} or another --hub_model_id")


def _commit_model(
    api: HfApi, head: ModelInfo, directory: Path, args: PublishArguments, target: Target
) -> str:
    """Put the model into its repository, unless it is there; return the commit that has it."""
    there = {file.rfilename: file for file in head.siblings or []}
    files = dict(_files(directory, args))
    stale = [
        name
        for name in there
        if name not in files and any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    ]
    assert head.sha is not None  # only listings of repositories leave it out
    if not stale and all(_same(content, there.get(name)) for name, content in files.items()):
        return head.sha
    card = model_card(directory, target.model, args, prior=None)
    adding = {**files, _CARD: card.encode()}
    operations = [CommitOperationDelete(name) for name in stale]
    made = api.create_commit(
        target.model,
        [*operations, *(CommitOperationAdd(name, own) for name, own in adding.items())],
        commit_message="Publish the model",
        parent_commit=head.sha,
    )
    return made.oid


def _files(directory: Path, args: PublishArguments) -> Iterator[tuple[str, Path | bytes]]:
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name not in _NOT_PUBLISHED:
            yield path.name, path
    if args.hub_dataset_id is not None:
        yield EVAL_RESULTS, eval_results(directory, args.hub_dataset_id).encode()


def _same(content: Path | bytes, there: RepoSibling | None) -> bool:
    """Whether the repository has a file as it is here."""
    if there is None:
        return False
    content = content if isinstance(content, bytes) else content.read_bytes()
    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


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


def _commit_card(api: HfApi, repo_id: str, at: str, card: str) -> None:
    """Replace the card of a model, unless it says the same already."""
    there = api.model_info(repo_id, revision=at, files_metadata=True).siblings or []
    if not any(file.rfilename == _CARD and _same(card.encode(), file) for file in there):
        api.create_commit(
            repo_id,
            [CommitOperationAdd(_CARD, card.encode())],
            commit_message="Name its prior",
            parent_commit=at,
        )
