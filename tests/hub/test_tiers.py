import itertools
import time
from itertools import pairwise

import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi

from hf_kfc.errors import HubError
from hf_kfc.hub import Tier, find_prior, pin, split_revision, walk_tiers
from hf_kfc.hub import tiers as tiers_module

NUMBERS = itertools.count()  # no two cards are alike: a commit that changes nothing is none
ELSEWHERE = "org/elsewhere@" + "0" * 40


def put(name: str, card: str) -> str:
    """Commit a card (and what every model has); return the name with the commit."""
    api = HfApi()
    api.create_repo(name, private=True, exist_ok=True)
    files = {"README.md": card, "config.json": "{}"}
    operations = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
    return f"{name}@{api.create_commit(name, operations, commit_message='put').oid}"


def card(**links: object) -> str:
    metadata = [f"{name}: {link}" for name, link in links.items()]
    return "\n".join(["---", *metadata, "---", f"# Card {next(NUMBERS)}"])


def put_tier(name: str, base: str | None = None, **links: object) -> Tier:
    prior = put(f"{name}-kfc", card(base_model=base or name))
    return Tier(put(name, card(consolidation_prior=prior, **links)), prior)


@pytest.fixture
def chain(hub: HubServer) -> list[Tier]:
    """Three tiers, the last first."""
    first = put_tier("org/tier1")
    second = put_tier("org/tier2", previous_model=first.model, consolidated_against=[first.prior])
    third = put_tier("org/tier3", previous_model=second.model)
    return [third, second, first]


def test_the_card_leads_to_the_prior(chain):
    for tier in chain:
        name, sha = tier.model.split("@")
        for model in (name, f"{name}@main", f"{name}@{sha}"):
            assert find_prior(model) == tier.prior


def test_an_older_revision_has_its_own_prior(chain):
    later = put_tier("org/tier1")
    assert find_prior("org/tier1") == later.prior != chain[-1].prior
    assert find_prior(chain[-1].model) == chain[-1].prior


def test_the_chain_is_walked_from_the_last_tier_to_the_first(chain):
    assert list(walk_tiers("org/tier3")) == chain
    # Links are to commits: what is published later changes nothing.
    put_tier("org/tier1", previous_model=ELSEWHERE)
    assert list(walk_tiers("org/tier3")) == chain
    assert list(walk_tiers(chain[1].model)) == chain[1:]


def test_what_is_cached_is_walked_without_the_hub(chain, hub, monkeypatch):
    assert list(walk_tiers("org/tier3")) == chain
    hub.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert list(walk_tiers("org/tier3")) == chain
    assert pin(chain[0].model) == chain[0].model


BAD = {
    "no prior": (card(note="a"), "names no prior"),
    "a prior that is not pinned": (card(consolidation_prior="org/a-kfc"), "names no prior"),
    "a prior at a branch": (card(consolidation_prior="org/a-kfc@main"), "names no prior"),
    "a prior that is no name": (card(consolidation_prior="[1, 2]"), "names no prior"),
    "a path for a prior": (card(consolidation_prior="../a@" + "0" * 40), "names no prior"),
    "a prior that is not there": (
        card(consolidation_prior=ELSEWHERE),
        "README.md of org/elsewhere@0{40} cannot be fetched: there is no such repository",
    ),
    "no metadata": ("# A card", "names no prior"),
    "a prior that would clear the screen": (
        card(consolidation_prior='"\\e[2J(verified)"'),
        "names no prior",
    ),
    "a list of bytes that become gigabytes": (
        card(
            a="&a [x, x, x, x, x, x, x, x, x]",
            **{new: f"&{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise("abcdefgh")},
        ),
        "is damaged .its metadata have aliases",
    ),
    "metadata that hold themselves": (card(a="&a [*a]"), "is damaged .its metadata have aliases"),
    "a number that takes minutes": (card(a="1" + ":1" * 100_000), "names no prior"),
    "metadata that are too long": (card(a="x" * 2**18), "is damaged .its metadata have more than"),
    "metadata that is a list": ("---\n- a\n---\n", "is damaged"),
    "metadata that is not YAML": ("---\na: [\n---\n", "is damaged"),
    "metadata too deep": ("---\na: " + "[" * 3000 + "\n---\n", "is damaged"),
    "metadata with a Python object": ("---\na: !!python/object:os.x {}\n---\n", "names no prior"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cards_are_refused_in_one_line(name, hub):
    text, message = BAD[name]
    pinned = put("org/a", text)
    began = time.process_time()
    with pytest.raises(HubError, match=message) as error:
        list(walk_tiers("org/a"))
    assert time.process_time() - began < 2
    assert str(error.value).isprintable()
    assert "\n" not in str(error.value)
    assert pinned in str(error.value) or "elsewhere" in name or "not there" in name


def test_a_huge_card_is_not_downloaded(hub):
    put("org/a", card(note="x" * 2**20))
    with pytest.raises(HubError, match="expected at most 1048576"):
        find_prior("org/a")
    assert not hub.asked("GET", "/resolve/")


def test_a_prior_of_another_model_is_refused(hub):
    tier = put_tier("org/a", base="org/b")
    with pytest.raises(HubError, match="whose own names the model org/b"):
        list(walk_tiers("org/a"))
    assert find_prior("org/a") == tier.prior  # whoever asks for it alone is told what it says


def test_a_chain_without_an_end_is_refused(hub, monkeypatch):
    """Whoever serves the cards may make up one tier after another."""
    shas = (f"{n:040x}" for n in itertools.count())
    monkeypatch.setattr(
        tiers_module,
        "_read_card",
        lambda name, *_: (
            f"{name.split('@')[0]}@{next(shas)}",
            {
                "consolidation_prior": "org/a-kfc@" + "0" * 40,
                "previous_model": f"org/a@{next(shas)}",
                "base_model": "org/a",
            },
        ),
    )
    walk = walk_tiers("org/a")
    assert len([next(walk) for _ in range(100)]) == 100
    with pytest.raises(HubError, match="lead back from org/a over more than 100 tiers"):
        next(walk)


def test_what_a_card_says_of_nothing_is_nothing(hub):
    tier = put_tier("org/a", previous_model="null", consolidated_against="[]")
    assert list(walk_tiers("org/a")) == [tier]


def test_a_lost_link_is_refused_not_taken_for_the_first_tier(hub):
    last = put_tier("org/a", consolidated_against=[ELSEWHERE])
    walk = walk_tiers("org/a")
    assert next(walk) == last
    with pytest.raises(HubError, match="tells of earlier tiers but not which model"):
        next(walk)


def test_a_circle_is_refused(hub, monkeypatch):
    """Commits cannot make one, but who serves them may."""
    put_tier("org/b", previous_model=ELSEWHERE)
    put_tier("org/a", previous_model=pin("org/b"))
    forged = {ELSEWHERE: "org/a"}
    original = tiers_module._read_card
    monkeypatch.setattr(
        tiers_module, "_read_card", lambda name, *rest: original(forged.get(name, name), *rest)
    )
    walk = walk_tiers("org/a")
    assert [next(walk).model.split("@")[0] for _ in range(2)] == ["org/a", "org/b"]
    with pytest.raises(HubError, match="go round in a circle at org/a@"):
        next(walk)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", "README.md of org/none@main cannot be fetched: there is no such repo"),
        ("org/tier1@v9", "README.md of org/tier1@v9 cannot be fetched: there is no such rev"),
    ],
)
def test_what_is_not_there_is_named(name, message, chain):
    with pytest.raises(HubError, match=message):
        find_prior(name)


def test_names_are_pinned_and_all_else_stays_as_it_is(chain, hub, tmp_path, monkeypatch):
    pinned = chain[0].model
    assert pin("org/tier3") == pin("org/tier3@main") == pin(pinned) == pinned
    asked = len(hub.requests)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tier3").mkdir(parents=True)
    for name in ("org/tier3", "/no/such/folder", "runs/tier1/prior", "..", "cnn"):
        assert pin(name) == name
    assert len(hub.requests) == asked
    with pytest.raises(HubError, match="org/none@main cannot be fetched"):
        pin("org/none")


def test_a_name_is_split_unless_it_is_a_folder(tmp_path):
    assert split_revision("org/a@v1") == ("org/a", "v1")
    assert split_revision("org/a") == ("org/a", None)
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)
