"""Built sets in folders and on the Hub: whole, loadable, and only where that is allowed."""

import subprocess
import sys

import datasets
import pytest
from hub_server import READ_TOKEN
from huggingface_hub import CommitOperationAdd, HfApi
from tiny_corpus import SIZES, TinyCorpus

from hf_kfc.errors import DataError, HfKfcError, HubError
from hf_kfc.ranking.push_dataset import push_to_hub, save_dataset

NAME = "org/ranking"


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    datasets.disable_progress_bars()
    cache = tmp_path_factory.mktemp("cache")
    made = {}
    for name in ("patients", "articles"):
        made[name] = TinyCorpus(config_name=name, cache_dir=str(cache))
        made[name].download_and_prepare()
    return made


@pytest.fixture
def push(hub, builders):
    def push(name="patients", repo_id=NAME, **options):
        options = {"token": hub.token, "endpoint": hub.endpoint} | options
        return push_to_hub(builders[name], repo_id, name, **options)

    return push


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def files(hub):
    return hub.repositories["dataset", NAME].resolve("main").files


def card(hub):
    return files(hub)["README.md"].content.decode()


def titles(api):
    return [commit.title for commit in api.list_repo_commits(NAME, repo_type="dataset")]


LOAD = """
import sys, datasets
for name in sys.argv[2:]:
    datasets.load_dataset(sys.argv[1], name).save_to_disk(name)
"""


def loaded(hub, where, repository, *names):
    """Load configurations in another process, with an empty cache and without this library."""
    command = [sys.executable, "-c", LOAD, str(repository), *names]
    subprocess.run(
        command, env=hub.environment(where / "home"), cwd=where, check=True, capture_output=True
    )
    return {name: datasets.load_from_disk(where / name) for name in names}


def check_same(data, builder):
    expected = builder.as_dataset()
    assert {split: rows.to_list() for split, rows in data.items()} == {
        split: rows.to_list() for split, rows in expected.items()
    }
    assert data["train"].features == expected["train"].features


def test_two_corpora_in_one_repository(hub, api, push, builders, tmp_path):
    first = push("patients")
    second = push("articles")
    assert titles(api) == ["Push articles", "Push patients", "initial commit"]
    info = api.dataset_info(NAME)
    assert (info.sha, info.private) == (second.oid, True)
    assert first.commit_url == f"{hub.endpoint}/datasets/{NAME}/commit/{first.oid}"
    contents = {"train.parquet", "validation.parquet", "test.parquet", "counts.json"}
    assert files(hub).keys() == {".gitattributes", "README.md"} | {
        f"{name}/{file}" for name in builders for file in contents
    }
    for name, data in loaded(hub, tmp_path, NAME, *builders).items():
        check_same(data, builders[name])


def test_what_others_wrote_stays_and_what_is_old_goes(hub, api, push):
    push("articles")
    edited = card(hub).replace("# Medical candidate ranking", "# Ours\n\nOur own words.")
    changes = {
        "README.md": edited,
        "patients/train-00000-of-00002.parquet": "old",
        "other/a.txt": "1",
    }
    api.create_commit(
        NAME,
        [CommitOperationAdd(path, content.encode()) for path, content in changes.items()],
        commit_message="by hand",
        repo_type="dataset",
    )
    push("patients")
    assert "patients/train-00000-of-00002.parquet" not in files(hub)
    assert files(hub)["other/a.txt"].content == b"1"
    assert "Our own words." in card(hub)
    assert card(hub).index("<!-- begin articles -->") < card(hub).index("<!-- begin patients -->")
    assert card(hub).count("config_name: articles") == 2  # its files, and its features
    before = api.dataset_info(NAME).sha
    assert push("articles").oid == before  # nothing new: no commit


def test_what_a_licence_forbids_stays_here(hub, push, monkeypatch):
    monkeypatch.setattr(TinyCorpus, "LICENSE", None)
    with pytest.raises(DataError, match=r"^patients: not pushed, the licence of its text is no"):
        push()
    assert not hub.requests
    push(redistribute="they are my own notes")
    assert "for this reason: they are my own notes" in card(hub)
    assert "license: other" in card(hub)


def test_somebody_commits_at_the_same_time(hub, api, push):
    push("articles")

    def other():
        push("patients")

    hub.before("POST", "/commit/", other)
    push("articles", redistribute="so that the card differs")
    assert titles(api)[:2] == ["Push articles", "Push patients"]
    assert {path.split("/")[0] for path in files(hub)} >= {"articles", "patients"}
    assert card(hub).count("<!-- begin") == 2
    assert "so that the card differs" in card(hub)
    hub.fail("POST", "/commit/", status=412, times=5)
    with pytest.raises(DataError, match=r"org/ranking: not pushed, .*412"):
        push("articles")
    assert len(hub.asked("POST", "/commit/")) == 4 + 5


def test_a_failure_half_way_pushes_nothing_and_is_made_good(hub, api, push):
    api.create_repo(NAME, repo_type="dataset", private=True)
    hub.fail("PUT", "/lfs/", status=400)
    with pytest.raises(DataError, match="try again"):
        push()
    hub.fail("POST", "/commit/", status=500)
    with pytest.raises(DataError, match=r"org/ranking: not pushed, .*500"):
        push()
    hub.cut("POST", "/commit/", at="request")
    with pytest.raises(DataError, match="without an answer"):
        push()
    assert titles(api) == ["initial commit"]
    uploads = [r.path for r in hub.asked("PUT", "/lfs/") if r.status == 200]
    assert len(set(uploads)) == len(uploads) == len(SIZES)
    hub.cut("POST", "/commit/", at="response")
    with pytest.raises(DataError, match="without an answer"):
        push()  # done, but nobody told us
    done = api.dataset_info(NAME).sha
    assert push().oid == done
    assert titles(api) == ["Push patients", "initial commit"]


def test_a_repository_is_as_private_as_was_asked_for(hub, api, push):
    api.create_repo(NAME, repo_type="dataset", private=False)
    with pytest.raises(HubError, match=r"^org/ranking is there and public; pass private=False$"):
        push()
    assert titles(api) == ["initial commit"]
    push(private=False)
    push("articles", "org/open", private=False)
    assert not hub.repositories["dataset", "org/open"].private
    api.create_repo("org/closed", repo_type="dataset", private=True)
    with pytest.raises(HubError, match=r"^org/closed is there and private; pass private=True$"):
        push(repo_id="org/closed", private=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": READ_TOKEN}, "403"),
        ({"token": "wrong"}, "401"),
        ({"repo_id": "not a name"}, "not a name: not pushed"),
        ({"endpoint": "http://127.0.0.1:9"}, "try again"),
    ],
)
def test_a_refusal_is_one_error_in_one_line(hub, push, options, message):
    with pytest.raises(DataError, match=message) as error:
        push(**options)
    assert "\n" not in str(error.value)
    assert not hub.repositories


@pytest.mark.parametrize("name", ["", "../up", "a/b", "data", ".hidden", "a b"])
def test_names_that_cannot_be_one_of_a_folder(builders, tmp_path, name):
    with pytest.raises(DataError, match=f"config_name is {name!r}"):
        push_to_hub(builders["patients"], NAME, name)
    with pytest.raises(DataError, match=f"config_name is {name!r}"):
        save_dataset(builders["patients"], tmp_path / "new", name)
    assert not list(tmp_path.iterdir())


def test_a_folder_loads_by_itself_and_is_whole_or_not_there(hub, builders, tmp_path, monkeypatch):
    builder, folder = builders["patients"], tmp_path / "saved"
    save_dataset(builder, folder, "patients")
    check_same(loaded(hub, tmp_path, folder, "patients")["patients"], builder)
    assert 'load_dataset("saved", "patients")' in (folder / "README.md").read_text()
    with pytest.raises(HfKfcError, match=r"saved exists and has no articles/counts\.json"):
        save_dataset(builders["articles"], folder, "articles")

    def fail(*_, **__):
        raise OSError("no space left")

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(datasets.Dataset, "to_parquet", fail)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="no space left"):
            save_dataset(builder, target, "patients")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (folder / "patients" / "test.parquet").is_file()
