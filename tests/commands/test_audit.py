import datasets
import pytest
from transformers import BertForSequenceClassification

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.ranking import CnnForMultipleChoice

from .conftest import SEEN, UNSEEN
from .test_estimate import SENTIMENT, bert, lines, tokenizer_of


def test_tokens_of_the_data_can_be_read_off(tier, run):
    values = run("audit", tier.prior, "--tokenizer", tier.model, "--json").values
    (embedding,) = values["embeddings"]
    assert values["min_examples"] is None
    assert embedding["counts"] is True
    assert embedding["moved"] is None
    assert set(SEEN) <= set(embedding["tokens"])
    assert not set(UNSEEN) & set(embedding["tokens"])
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    frequencies = [float(prior.curvature.blocks[0].operator.A[t]) for t in embedding["readable"]]
    assert frequencies == sorted(frequencies)
    text = run("audit", tier.prior, "--tokenizer", tier.model).out
    assert "nothing was left out" in text
    rarest = " ".join(embedding["tokens"][:20])
    assert f"readable in embeddings, the rarest first: {rarest}" in text


def test_a_published_prior_tells_fewer(tier, run, tmp_path):
    public = without_rare_inputs(ConsolidationPrior.from_pretrained(tier.prior), 18)
    public.save_pretrained(tmp_path / "public")
    values = run("audit", tmp_path / "public", "--json").values
    (embedding,) = values["embeddings"]
    assert embedding["counts"] is False
    assert embedding["tokens"] is None
    assert sorted(embedding["readable"]) == public.curvature.blocks[0].inputs.tolist()
    dropped = public.provenance.dropped_inputs["embeddings"]
    text = run("audit", tmp_path / "public").out
    assert f"in fewer than 18 examples: {dropped} of embeddings" in text


def test_rows_that_moved_since_the_base_model_are_told(tier, run, changed):
    base = changed("embeddings.weight")
    values = run("audit", tier.prior, "--base", base, "--json").values
    vocabulary = CnnForMultipleChoice.from_pretrained(base).config.vocab_size
    assert values["embeddings"][0]["moved"] == list(range(vocabulary))


def test_the_membership_test_tells_members_by_their_tokens(tier, run):
    folders = ("--members", tier.members, "--non_members", tier.others)
    result = run("audit", tier.prior, "--model", tier.model, *folders, "--max_length", 64, "--json")
    tests = {test["score"]: test for test in result.values["membership"]}
    assert tests["tokens of embeddings"]["auc"] == 1.0
    assert tests.keys() >= {"loss", "inputs of convolution", "inputs of dense"}
    swapped = ("--members", tier.others, "--non_members", tier.members)
    text = run("audit", tier.prior, "--model", tier.model, *swapped, "--max_length", 64).out
    line = next(line for line in text.splitlines() if line.startswith("tokens of embeddings"))
    assert line.split()[3:] == ["0.000", "0.000", "0.000"]


def test_a_membership_test_needs_all_of_its_parts(tier, run):
    result = run("audit", tier.prior, "--model", tier.model, "--members", tier.members)
    assert (result.status, result.out) == (1, "")
    assert "--model, --members and --non_members" in result.err


def test_splits_strange_columns_and_no_data_are_refused(tier, run, tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "strange")
    splits = datasets.DatasetDict(
        train=datasets.load_from_disk(tier.members), test=datasets.load_from_disk(tier.others)
    )
    splits.save_to_disk(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("strange", "has no column candidate_ids"),
        ("splits", f"give one of {tmp_path / 'splits'}/train"),
        ("empty", "cannot be loaded"),
        ("absent", "cannot be loaded"),
    ):
        folders = ("--members", tmp_path / name, "--non_members", tier.others)
        result = run("audit", tier.prior, "--model", tier.model, *folders)
        assert (result.status, result.out) == (1, "")
        assert said in result.err


def test_encoded_examples_are_taken_as_they_are(tier, run, tmp_path):
    encoded = {"input_ids": [[[1, 2], [1, 3]]] * 4, "labels": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(encoded).save_to_disk(tmp_path / "encoded")
    folders = ("--members", tmp_path / "encoded", "--non_members", tmp_path / "encoded")
    result = run("audit", tier.prior, "--model", tier.model, *folders, "--json")
    assert {test["auc"] for test in result.values["membership"]} == {0.5}


@pytest.mark.parametrize("option", ["--base", "--tokenizer"])
def test_what_cannot_be_loaded_is_one_line(option, tier, run, tmp_path):
    result = run("audit", tier.prior, option, tmp_path)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: ")


def test_a_classifiers_examples_are_read_as_estimate_reads_them(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    members = lines(tmp_path / "members.jsonl", text=["the good film"] * 6, label=[1, 0] * 3)
    others = lines(tmp_path / "others.jsonl", text=["bad and long"] * 6, label=[1, 0] * 3)
    prior = tmp_path / "prior"
    assert run("estimate", "--model", model, "--dataset", members, "--output", prior).status == 0
    words = ("--model", model, "--members", members, "--non_members", others, "--json")
    tests = {t["score"]: t["auc"] for t in run("audit", prior, *words).values["membership"]}
    assert tests["tokens of bert.embeddings.word_embeddings"] == 1.0


def test_rare_tokens_are_looked_for_in_what_a_layer_spans(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    texts = [*["the film"] * 10, "the good film", "the long film"]
    members = lines(tmp_path / "members.jsonl", text=texts, label=[1, 0] * 6)
    aucs = []
    for least in (0, 10):
        prior = tmp_path / f"prior{least}"
        words = ("--dataset", members, "--min_token_examples", least, "--output", prior)
        assert run("estimate", "--model", model, *words).status == 0
        assert ConsolidationPrior.from_pretrained(prior).provenance.min_token_examples == least
        folders = ("--members", members, "--non_members", members)
        span = run("audit", prior, "--model", model, *folders, "--json").values["rare_tokens"]
        assert span["score"].endswith("by inputs of bert.encoder.layer.0.attention.self.query")
        aucs.append(span["auc"])
    assert aucs[0] > aucs[1]
    text = run("audit", prior, "--model", model, *folders).out
    assert "in fewer than 10, told from absent" in text


def test_two_revisions_and_frequencies(tier, run, tmp_path):
    """The earlier revision is here the same one: nothing is left but rounding."""
    tested = ("--model", tier.model, "--members", tier.members, "--non_members", tier.others)
    both = ("--earlier", tier.prior, "--added", tier.members, "--max_length", 64)
    result = run("audit", tier.prior, *tested, *both, "--json")
    assert result.values["added_tokens"] is None  # the CNN's first layer is no linear one
    (frequencies,) = result.values["frequencies"]
    assert frequencies["what"] == "inputs of embeddings"
    assert frequencies["correlation"] > 0.99
    for part in (both[:2], both[2:4], (*both[:4],)):
        refused = run("audit", tier.prior, *part)
        assert (refused.status, refused.out) == (1, "")
        assert "needs --earlier, --added" in refused.err
