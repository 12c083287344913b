"""Pushing a tier: what is on the Hub afterwards, whatever happened on the way."""

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from hub_repository import Repository
from hub_server import READ_TOKEN, HubServer
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from recipe_runs import SMALL_CNN, TINY, Recipes, Result

from hf_kfc.errors import HfKfcError
from hf_kfc.hub import Tier, find_prior, walk_tiers
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CnnForMultipleChoice, PushArguments, model_card, push_tier

MODEL, PRIOR = "org/tier1", "org/tier1-kfc"
ARGUMENTS = PushArguments(
    push_to_hub=MODEL,
    license="apache-2.0",
    data_statement="Invented by a program.",
    min_examples=5,
)
MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def run(recipes: Recipes, tier: Path, *arguments: object) -> Result:
    return recipes.call("tier1", *TINY, *SMALL_CNN, "--output_dir", tier, *arguments)


@pytest.fixture(scope="module")
def tier(tmp_path_factory: pytest.TempPathFactory, recipes: Recipes) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tier1"
    assert run(recipes, directory).status == 0
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
    model, prior = files(hub, MODEL), files(hub, PRIOR)
    assert {name: model[name] for name in MODEL_FILES} == {
        name: (tier / name).read_bytes() for name in MODEL_FILES
    }
    assert model.keys() == MODEL_FILES | {"README.md"}
    assert prior.keys() == {"README.md", "config.json", "prior.safetensors"}
    assert repository(hub, MODEL).private
    assert repository(hub, PRIOR).private
    (walked,) = walk_tiers(MODEL)
    assert walked == Tier(
        f"{MODEL}@{repository(hub, MODEL).resolve('main').sha}",
        f"{PRIOR}@{repository(hub, PRIOR).resolve('main').sha}",
    )
    loaded = ConsolidationPrior.from_pretrained(find_prior(MODEL))
    loaded.check(CnnForMultipleChoice.from_pretrained(tier))
    base = ModelCard(prior["README.md"].decode()).data
    anchored_at = files(hub, MODEL, base.base_model_revision)
    assert anchored_at["model.safetensors"] == model["model.safetensors"]
    assert [ref for ref in repository(hub, PRIOR).refs if "tags" in ref] == [
        f"refs/tags/articles-{loaded.fingerprint[:12]}"
    ]


def test_model_then_prior_then_the_link_each_in_one_commit(hub, tier):
    pushed = push_tier(tier, ARGUMENTS)
    check_published(hub, tier)
    assert titles(hub, MODEL) == ["initial commit", "Push the model", "Name its prior"]
    assert titles(hub, PRIOR) == ["initial commit", "Publish the prior of articles"]
    commits = [r.path for r in hub.asked("POST", "/commit/")]
    assert [path.split("/")[4] for path in commits] == ["tier1", "tier1-kfc", "tier1"]
    assert pushed == find_prior(MODEL)


def test_nothing_is_done_twice(hub, tier):
    push_tier(tier, ARGUMENTS)
    refs = [dict(repository(hub, name).refs) for name in (MODEL, PRIOR)]
    uploads = len(hub.asked("PUT", "/lfs/"))
    push_tier(tier, ARGUMENTS)
    assert [dict(repository(hub, name).refs) for name in (MODEL, PRIOR)] == refs
    assert len(hub.asked("PUT", "/lfs/")) == uploads


@pytest.mark.parametrize(
    ("curvature", "ending"), [("diagonal", "ewc"), ("kronecker_eigen", "ekfac")]
)
def test_the_prior_is_named_by_its_curvature(curvature, ending, hub, recipes, tmp_path):
    arguments = ("--curvature", curvature, "--push_to_hub", MODEL, "--min_examples", "0")
    result = run(recipes, tmp_path / "tier1", *arguments)
    assert result.status == 0, result.err
    assert find_prior(MODEL).startswith(f"{MODEL}-{ending}@")
    assert f"published as {MODEL}, its prior as {find_prior(MODEL)}" in result.out


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


def push_elsewhere(endpoint: str, cache: str, directory: str) -> None:
    """What a process of its own does, which knows nothing of the test's settings."""
    from huggingface_hub import constants  # noqa: PLC0415

    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = cache
    constants.HF_HUB_DISABLE_XET = True
    os.environ["HF_TOKEN"] = HubServer.token
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        push_tier(Path(directory), ARGUMENTS)


@pytest.mark.parametrize("stage", [*STAGES, LINK])
def test_killed_at_any_stage_and_run_again(stage, hub, tier, tmp_path):
    context = multiprocessing.get_context("forkserver")  # imports once for all stages
    context.set_forkserver_preload(["hf_kfc.ranking"])
    arguments = (hub.endpoint, str(tmp_path / "cache"), str(tier))
    process = context.Process(target=push_elsewhere, args=arguments)

    def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)

    at_stage(hub, stage, lambda *request: hub.before(*request, kill))
    process.start()
    process.join(300)  # it imports everything anew, on a machine that may be busy
    assert process.exitcode == -signal.SIGKILL
    push_tier(tier, ARGUMENTS)
    check_published(hub, tier)
    assert titles(hub, MODEL) == ["initial commit", "Push the model", "Name its prior"]
    assert titles(hub, PRIOR) == ["initial commit", "Publish the prior of articles"]


@pytest.mark.parametrize("stage", [*STAGES, LINK])
def test_a_failure_is_one_line_and_run_again_it_is_whole(stage, hub, tier):
    # An upload is tried several times by the client.
    at_stage(hub, stage, lambda *request: hub.fail(*request, status=500, times=30))
    with pytest.raises(
        HfKfcError, match=r"not pushed|not replaced|cannot be|is not the prior's"
    ) as error:
        push_tier(tier, ARGUMENTS)
    assert "\n" not in str(error.value)
    hub._faults.clear()
    push_tier(tier, ARGUMENTS)
    check_published(hub, tier)


def test_someone_elses_commit_in_between_is_not_overwritten(hub, tier):
    """The card tells of the weights that were there before."""
    other = b"other weights"

    def commit() -> None:
        operations = [CommitOperationAdd("model.safetensors", other)]
        HfApi().create_commit(MODEL, operations, commit_message="theirs")

    at_stage(hub, "tag of the prior", lambda *request: hub.before(*request, commit))
    with pytest.raises(HfKfcError, match="run the same again"):
        push_tier(tier, ARGUMENTS)
    assert files(hub, MODEL)["model.safetensors"] == other
    push_tier(tier, ARGUMENTS)
    check_published(hub, tier)


# --- What is refused -----------------------------------------------------------------------------


def put(name: str, path: str, content: bytes = b"content", private: bool = True) -> None:
    HfApi().create_repo(name, private=private)
    HfApi().create_commit(name, [CommitOperationAdd(path, content)], commit_message="put")


def test_a_repository_of_a_prior_gets_no_model(hub, tier):
    put(MODEL, "prior-00001-of-00002.safetensors")
    with pytest.raises(HfKfcError, match="org/tier1 holds a prior; give the model another"):
        push_tier(tier, ARGUMENTS)
    assert titles(hub, MODEL) == ["initial commit", "put"]


def test_a_public_repository_is_not_taken_for_a_private_one(hub, tier):
    put(MODEL, "notes.txt", private=False)
    with pytest.raises(HfKfcError, match="is there and public; pass private=False"):
        push_tier(tier, ARGUMENTS)
    assert titles(hub, MODEL) == ["initial commit", "put"]
    push_tier(tier, replace(ARGUMENTS, hub_private_repo=False))
    assert not repository(hub, PRIOR).private


def test_older_weights_in_other_files_go_and_other_files_stay(hub, tier):
    put(MODEL, "model-00001-of-00002.safetensors")
    HfApi().create_commit(MODEL, [CommitOperationAdd("notes.txt", b"mine")], commit_message="put")
    push_tier(tier, ARGUMENTS)
    assert files(hub, MODEL).keys() == MODEL_FILES | {"README.md", "notes.txt"}


@pytest.mark.parametrize("token", ["wrong", READ_TOKEN])
def test_a_token_that_may_not_write_is_told_in_one_line(token, hub, tier, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HfKfcError) as error:
        ARGUMENTS.check()
        push_tier(tier, ARGUMENTS)
    assert "\n" not in str(error.value)
    assert hub.repositories == {}
    if token == "wrong":
        assert "the Hub does not tell who you are (" in str(error.value)


# --- A finished folder ---------------------------------------------------------------------------


PUSH = ("--push_to_hub", MODEL, "--license", "apache-2.0", "--min_examples", "5")


def test_a_finished_folder_is_pushed_without_learning_again(hub, recipes, tier, monkeypatch):
    monkeypatch.setattr("transformers.Trainer.train", None)
    result = run(recipes, tier, *PUSH)
    assert result.status == 0, result.err
    check_published(hub, tier)


@pytest.mark.parametrize("changed", ["arguments", "versions"])
def test_a_folder_of_other_arguments_or_versions_is_learnt_anew(
    changed, hub, recipes, tier, monkeypatch
):
    if changed == "versions":
        monkeypatch.setattr("hf_kfc.ranking.comparison.versions", lambda: {"torch": "1"})

    def stop(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("transformers.Trainer.train", stop)
    with pytest.raises(InterruptedError):
        run(recipes, tier, *PUSH, *(("--seed", "1") if changed == "arguments" else ()))
    assert hub.repositories == {}


# --- The cards -----------------------------------------------------------------------------------


def test_the_models_card(hub, tier):
    push_tier(tier, ARGUMENTS)
    card = ModelCard(files(hub, MODEL)["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name) == ("apache-2.0", "transformers")
    assert data.datasets is None  # a folder of this machine
    (result,) = data.eval_results
    accuracy = ConsolidationPrior.from_pretrained(PRIOR).provenance.anchor_metrics["accuracy"]
    assert result.dataset_name == "articles"
    assert (result.metric_type, result.metric_value) == ("accuracy", accuracy)
    row = f"| articles | {accuracy:.1%} | {accuracy:.1%} | - | - | `{data.consolidation_prior}` |"
    assert row in card.text.splitlines()
    assert "Invented by a program." in card.text
    assert str(tier.parent) not in card.text
    assert "recipes/data" not in card.text
    assert "| hidden_size | 8 |" in card.text.splitlines()
    first = HfApi().list_repo_commits(MODEL)[1].commit_id
    before = ModelCard(files(hub, MODEL, first)["README.md"].decode())
    assert "consolidation_prior" not in before.data
    assert "not published yet" in before.text


def test_what_a_first_tier_began_with_is_its_base_and_no_earlier_tier(tier, tmp_path):
    """Whoever walks from tier to tier must not go on to an encoder, which has no prior."""
    results = json.loads((tier / "results.json").read_text("utf-8"))
    results["settings"]["tier"]["model"] = "google-bert/bert-base-uncased@main"
    results["settings"]["data"]["dataset"] = "org/ranking@v1"
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    (tmp_path / "results.md").write_text("", "utf-8")
    data = ModelCard(model_card(tmp_path, MODEL, ARGUMENTS)).data
    assert (data.base_model, data.datasets) == ("google-bert/bert-base-uncased", "org/ranking")
    assert "previous_model" not in data


def run_code(text: str, names: dict[str, object]) -> dict[str, object]:
    """Run the Python on a page."""
    for part in text.split("```python\n")[1:]:
        exec(part.split("```")[0], names)
    return names


def test_the_code_on_the_cards_runs(hub, tier, monkeypatch):
    push_tier(tier, ARGUMENTS)
    made = []

    class Trainer:
        def __init__(self, *args: object, **given: object) -> None:
            made.append(given)

        def train(self) -> None:
            made.append("trained")

    monkeypatch.setattr("hf_kfc.ConsolidationTrainer", Trainer)
    monkeypatch.setattr("hf_kfc.ranking.RankingConsolidationTrainer", Trainer)
    model_card = ModelCard(files(hub, MODEL)["README.md"].decode())
    names = run_code(model_card.text, {"train": [], "collate": None})
    assert isinstance(names["model"], CnnForMultipleChoice)
    run_code(files(hub, PRIOR)["README.md"].decode(), names)
    for given in made[::2]:
        (prior,) = given["priors"]
        assert str(prior.source) == find_prior(MODEL)
        prior.check(names["model"])
    assert made[1::2] == ["trained", "trained"]


def test_the_code_on_the_page_runs(hub, tier, tmp_path, monkeypatch, capsys):
    push_tier(tier, ARGUMENTS)
    capsys.readouterr()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tier1").symlink_to(tier)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "guides" / "hub.md"
    run_code(page.read_text(encoding="utf-8"), {})
    out = capsys.readouterr().out
    (walked,) = walk_tiers(MODEL)
    assert out.splitlines()[:3] == [walked.prior, walked.prior, f"{walked.model} {walked.prior}"]
    assert titles(hub, "org/my-prior") == ["initial commit", "Publish the prior of articles"]
    assert "refs/pr/1" in repository(hub, PRIOR).refs
