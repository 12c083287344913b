"""Publishing a tier: what is on the Hub afterwards, whatever happened on the way."""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hub_repository import Repository
from hub_server import READ_TOKEN, HubServer
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import HfKfcError
from hf_kfc.hub import Tier, find_prior, walk_tiers
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CnnForMultipleChoice
from laboratory import (
    DataArguments,
    LearningArguments,
    PublishArguments,
    RankerArguments,
    Tier1Arguments,
    run_tier1,
)
from laboratory.publish import Target, publish

TARGET = Target("org/tier1", "org/tier1-kfc")
ARGUMENTS = PublishArguments(
    push_to_hub=True,
    hub_model_id=TARGET.model,
    license="apache-2.0",
    data_statement="Invented by a program.",
    min_examples=5,
)
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def learn(directory: Path, publishing: PublishArguments) -> None:
    run_tier1(
        Tier1Arguments(output_dir=str(directory)),
        RankerArguments(hidden_size=8, vocab_size=500),
        DataArguments(train_examples=48, validation_examples=16, test_examples=16),
        LearningArguments(epochs=1),
        CurvatureArguments(),
        publishing,
    )


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory, examples_cache: Path) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tier1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        learn(directory, PublishArguments(min_examples=5))
    return directory


def repository(hub: HubServer, name: str) -> Repository:
    return hub.repositories["model", name]


def titles(hub: HubServer, name: str) -> list[str]:
    return [commit.title for commit in reversed(HfApi().list_repo_commits(name))]


def files(hub: HubServer, name: str, revision: str = "main") -> Mapping[str, bytes]:
    found = repository(hub, name).resolve(revision).files
    return {path: blob.content for path, blob in found.items() if path != ".gitattributes"}


def check_published(hub: HubServer, tier: Path) -> None:
    """The model is there as in the folder, with one prior, and each leads to the other."""
    model, prior = files(hub, TARGET.model), files(hub, TARGET.prior)
    assert {name: model[name] for name in MODEL_FILES} == {
        name: (tier / name).read_bytes() for name in MODEL_FILES
    }
    assert model.keys() == MODEL_FILES | {"README.md"}
    assert prior.keys() == {"README.md", "config.json", "prior.safetensors", "prediction.png"}
    assert repository(hub, TARGET.model).private
    assert repository(hub, TARGET.prior).private
    (walked,) = walk_tiers(TARGET.model)
    assert walked == Tier(
        f"{TARGET.model}@{repository(hub, TARGET.model).resolve('main').sha}",
        f"{TARGET.prior}@{repository(hub, TARGET.prior).resolve('main').sha}",
    )
    loaded = ConsolidationPrior.from_pretrained(find_prior(TARGET.model))
    loaded.check(CnnForMultipleChoice.from_pretrained(tier))
    base = ModelCard(prior["README.md"].decode()).data
    anchored_at = files(hub, TARGET.model, base.base_model_revision)
    assert anchored_at["model.safetensors"] == model["model.safetensors"]
    assert [ref for ref in repository(hub, TARGET.prior).refs if "tags" in ref] == [
        f"refs/tags/articles-{loaded.fingerprint[:12]}"
    ]


def test_model_then_prior_then_the_link_each_in_one_commit(hub, tier, capsys):
    publish(tier, ARGUMENTS, TARGET)
    check_published(hub, tier)
    assert titles(hub, TARGET.model) == ["initial commit", "Publish the model", "Name its prior"]
    assert titles(hub, TARGET.prior) == ["initial commit", "Publish the prior of articles"]
    commits = [r.path for r in hub.asked("POST", "/commit/")]
    assert [path.split("/")[4] for path in commits] == ["tier1", "tier1-kfc", "tier1"]
    assert (
        f"published as org/tier1, its prior as {find_prior('org/tier1')}" in capsys.readouterr()[0]
    )


def test_nothing_is_done_twice(hub, tier):
    publish(tier, ARGUMENTS, TARGET)
    refs = [dict(repository(hub, name).refs) for name in (TARGET.model, TARGET.prior)]
    uploads = len(hub.asked("PUT", "/lfs/"))
    publish(tier, ARGUMENTS, TARGET)
    assert [dict(repository(hub, name).refs) for name in (TARGET.model, TARGET.prior)] == refs
    assert len(hub.asked("PUT", "/lfs/")) == uploads


def test_no_target_and_no_flag_publish_nothing(hub, tier, tmp_path):
    assert PublishArguments().target(tmp_path, "kronecker") is None
    publish(tier, ARGUMENTS, None)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("curvature", "ending"),
    [("kronecker", "kfc"), ("diagonal", "ewc"), ("kronecker_eigen", "ekfac")],
)
def test_repositories_are_named_by_user_folder_and_method(curvature, ending, hub, tmp_path):
    folder = tmp_path / "my-tier"
    own = PublishArguments(push_to_hub=True).target(folder, curvature)
    assert own == Target("tester/my-tier", f"tester/my-tier-{ending}")
    short = replace(ARGUMENTS, hub_model_id="mine").target(folder, curvature)
    assert short == Target("tester/mine", f"tester/mine-{ending}")
    assert ARGUMENTS.target(folder, curvature) == Target("org/tier1", f"org/tier1-{ending}")


# --- Again after a kill or a failure -------------------------------------------------------------

STAGES = {
    "repository of the model": ("POST", "/api/repos/create"),
    "upload of the model": ("PUT", "/lfs/models/org/tier1/"),
    "commit of the model": ("POST", "/api/models/org/tier1/commit/"),
    "model fetched to be compared": ("GET", "/org/tier1/resolve/"),
    "upload of the prior": ("PUT", "/lfs/models/org/tier1-kfc/"),
    "commit of the prior": ("POST", "/api/models/org/tier1-kfc/commit/"),
    "tag of the prior": ("POST", "/api/models/org/tier1-kfc/tag/"),
}
LINK = "link to the prior"  # the second commit of the model


def at_stage(hub: HubServer, stage: str, arm) -> None:
    """Prepare for something to happen at a stage."""
    if stage == LINK:
        hub.before(*STAGES["tag of the prior"], lambda: arm(*STAGES["commit of the model"]))
    else:
        arm(*STAGES[stage])


def publish_elsewhere(endpoint: str, cache: str, directory: str) -> None:
    """What a process of its own does, which knows nothing of the test's settings."""
    from huggingface_hub import constants  # noqa: PLC0415

    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = cache
    constants.HF_HUB_DISABLE_XET = True
    os.environ["HF_TOKEN"] = HubServer.token
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        publish(Path(directory), ARGUMENTS, TARGET)


@pytest.mark.parametrize("stage", [*STAGES, LINK])
def test_killed_at_any_stage_and_run_again(stage, hub, tier, tmp_path):
    context = multiprocessing.get_context("forkserver")  # imports once for all stages
    context.set_forkserver_preload(["laboratory"])
    arguments = (hub.endpoint, str(tmp_path / "cache"), str(tier))
    process = context.Process(target=publish_elsewhere, args=arguments)

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)

    at_stage(hub, stage, lambda *request: hub.before(*request, kill))
    process.start()
    process.join(300)  # it imports everything anew, on a machine that may be busy
    assert process.exitcode == -signal.SIGKILL
    publish(tier, ARGUMENTS, TARGET)
    check_published(hub, tier)
    assert titles(hub, TARGET.model) == ["initial commit", "Publish the model", "Name its prior"]
    assert titles(hub, TARGET.prior) == ["initial commit", "Publish the prior of articles"]


@pytest.mark.parametrize("stage", [*STAGES, LINK])
def test_a_failure_is_one_line_and_run_again_it_is_whole(stage, hub, tier):
    # An upload is tried several times by the client.
    at_stage(hub, stage, lambda *request: hub.fail(*request, status=500, times=30))
    with pytest.raises(
        HfKfcError, match=r"not pushed|not replaced|cannot be|is not the prior's"
    ) as error:
        publish(tier, ARGUMENTS, TARGET)
    assert "\n" not in str(error.value)
    hub._faults.clear()
    publish(tier, ARGUMENTS, TARGET)
    check_published(hub, tier)


def test_someone_elses_commit_in_between_is_not_overwritten(hub, tier):
    """The card tells of the weights that were there before."""
    other = b"other weights"

    def commit() -> None:
        operations = [CommitOperationAdd("model.safetensors", other)]
        HfApi().create_commit(TARGET.model, operations, commit_message="theirs")

    at_stage(hub, "tag of the prior", lambda *request: hub.before(*request, commit))
    with pytest.raises(HfKfcError, match="run the same again"):
        publish(tier, ARGUMENTS, TARGET)
    assert files(hub, TARGET.model)["model.safetensors"] == other
    publish(tier, ARGUMENTS, TARGET)
    check_published(hub, tier)


# --- What is refused -----------------------------------------------------------------------------


def put(name: str, path: str, content: bytes = b"content", private: bool = True) -> None:
    HfApi().create_repo(name, private=private)
    HfApi().create_commit(name, [CommitOperationAdd(path, content)], commit_message="put")


def test_a_repository_of_a_prior_gets_no_model(hub, tier):
    put(TARGET.model, "prior-00001-of-00002.safetensors")
    with pytest.raises(HfKfcError, match="org/tier1 holds a prior; give the model another"):
        publish(tier, ARGUMENTS, TARGET)
    assert titles(hub, TARGET.model) == ["initial commit", "put"]


def test_a_public_repository_is_not_taken_for_a_private_one(hub, tier):
    put(TARGET.model, "notes.txt", private=False)
    with pytest.raises(HfKfcError, match="is there and public; pass private=False"):
        publish(tier, ARGUMENTS, TARGET)
    assert titles(hub, TARGET.model) == ["initial commit", "put"]
    publish(tier, replace(ARGUMENTS, hub_private_repo=False), TARGET)
    assert not repository(hub, TARGET.prior).private


def test_older_weights_in_other_files_go_and_other_files_stay(hub, tier):
    put(TARGET.model, "model-00001-of-00002.safetensors")
    HfApi().create_commit(
        TARGET.model, [CommitOperationAdd("notes.txt", b"mine")], commit_message="put"
    )
    publish(tier, ARGUMENTS, TARGET)
    assert files(hub, TARGET.model).keys() == MODEL_FILES | {"README.md", "notes.txt"}


@pytest.mark.parametrize("token", ["wrong", READ_TOKEN])
def test_a_token_that_may_not_write_is_told_in_one_line(token, hub, tier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HfKfcError) as error:
        publish(tier, ARGUMENTS, ARGUMENTS.target(tier, "kronecker"))
    assert "\n" not in str(error.value)
    assert hub.repositories == {}
    if token == "wrong":
        assert "the Hub does not tell who you are (" in str(error.value)


# --- A finished folder ---------------------------------------------------------------------------


def test_a_finished_folder_is_published_without_learning_again(hub, tier, monkeypatch, capsys):
    monkeypatch.setattr("laboratory.runs.learn", None)
    learn(tier, ARGUMENTS)
    check_published(hub, tier)
    assert f"{tier} holds what these arguments give; to learn it anew" in capsys.readouterr().out


@pytest.mark.parametrize("changed", ["arguments", "versions"])
def test_a_folder_of_other_arguments_or_versions_is_learnt_anew(changed, hub, tier, monkeypatch):
    publishing = ARGUMENTS
    if changed == "arguments":
        publishing = replace(ARGUMENTS, min_examples=6)
    else:
        monkeypatch.setattr("laboratory.runs.versions", lambda: {"torch": "1"})

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("laboratory.runs.learn", stop)
    with pytest.raises(InterruptedError):
        learn(tier, publishing)
    assert hub.repositories == {}


# --- The cards -----------------------------------------------------------------------------------


def test_the_models_card(hub, tier):
    publish(tier, replace(ARGUMENTS, hub_dataset_id="org/ranking"), TARGET)
    card = ModelCard(files(hub, TARGET.model)["README.md"].decode())
    data = card.data
    assert (data.license, data.datasets, data.library_name) == (
        *("apache-2.0", "org/ranking", "transformers"),
    )
    (result,) = data.eval_results
    accuracy = ConsolidationPrior.from_pretrained(TARGET.prior).provenance.anchor_metrics[
        "accuracy"
    ]
    assert (result.dataset_type, result.dataset_config) == ("org/ranking", "articles")
    assert (result.metric_type, result.metric_value) == ("accuracy", accuracy)
    assert yaml.safe_load(files(hub, TARGET.model)[".eval_results/hf_kfc.yaml"]) == [
        {"dataset": {"id": "org/ranking", "task_id": "articles"}, "value": accuracy}
    ]
    row = f"| articles | {accuracy:.1%} | {accuracy:.1%} | - | - | `{data.consolidation_prior}` |"
    assert row in card.text.splitlines()
    assert "Invented by a program." in card.text
    assert str(tier.parent) not in card.text
    first = HfApi().list_repo_commits(TARGET.model)[1].commit_id
    before = ModelCard(files(hub, TARGET.model, first)["README.md"].decode())
    assert "consolidation_prior" not in before.data
    assert "not published yet" in before.text


def run_code(text: str, names: dict[str, object]) -> dict[str, object]:
    """Run the Python on a page."""
    for part in text.split("```python\n")[1:]:
        exec(part.split("```")[0], names)
    return names


def test_the_code_on_the_cards_runs(hub, tier, monkeypatch):
    publish(tier, ARGUMENTS, TARGET)
    made = []

    class Trainer:
        def __init__(self, *args: object, **given: object) -> None:
            made.append(given)

        def train(self) -> None:
            made.append("trained")

    monkeypatch.setattr("hf_kfc.ConsolidationTrainer", Trainer)
    model_card = ModelCard(files(hub, TARGET.model)["README.md"].decode())
    names = run_code(model_card.text, {"train": [], "collate": None})
    assert isinstance(names["model"], CnnForMultipleChoice)
    run_code(files(hub, TARGET.prior)["README.md"].decode(), names)
    for given in made[::2]:
        (prior,) = given["priors"]
        assert str(prior.source) == find_prior(TARGET.model)
        prior.check(names["model"])
    assert made[1::2] == ["trained", "trained"]


def test_the_code_on_the_page_runs(hub, tier, tmp_path, monkeypatch, capsys):
    publish(tier, ARGUMENTS, TARGET)
    capsys.readouterr()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tier1").symlink_to(tier)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "guides" / "hub.md"
    run_code(page.read_text(encoding="utf-8"), {})
    out = capsys.readouterr().out
    (walked,) = walk_tiers(TARGET.model)
    assert out.splitlines()[:3] == [walked.prior, walked.prior, f"{walked.model} {walked.prior}"]
    assert titles(hub, "org/my-prior") == ["initial commit", "Publish the prior of articles"]
    assert "refs/pr/1" in repository(hub, TARGET.prior).refs
