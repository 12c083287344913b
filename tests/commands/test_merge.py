import shutil

import pytest

from hf_kfc import ConsolidationPrior


def test_priors_are_merged_written_and_inspected(tier, run, tmp_path):
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    expected = ConsolidationPrior.merge([prior, prior, prior], rank=2, weights=[1, 1, 2])
    output = tmp_path / "merged"
    words = ("--rank", 2, "--weights", 1, 1, 2, "--output", output)
    result = run("merge", tier.prior, tier.prior, tier.prior, *words, "--json")
    assert (result.status, result.err) == (0, "")
    merged = ConsolidationPrior.from_pretrained(output)
    assert merged.fingerprint == expected.fingerprint
    values = result.values
    assert values["output"] == str(output)
    assert values["fingerprint"] == merged.fingerprint
    assert values["bytes"] == sum(path.stat().st_size for path in output.iterdir())
    assert values["provenance"] == merged.provenance.to_dict()
    assert {layer["name"]: layer["error"] for layer in values["layers"]} == (
        merged.provenance.approximation_errors
    )

    inspected = run("inspect", output)
    lines = {line.split()[0]: line for line in inspected.out.splitlines() if line}
    assert lines["merged"].split()[1:] == ["symptoms", "4.0"]
    assert "largest 0.00% (" in lines["approximation_errors"]
    assert lines["merge_damping"].split()[1] == "0.1"
    assert "0.00%" in lines["classifier"]
    assert run("diff", tier.prior, output).status == 0
    audited = run("audit", output, "--json").values
    assert (
        audited["embeddings"][0]["seen"]
        == run("audit", tier.prior, "--json").values["embeddings"][0]["seen"]
    )


def test_the_share_of_examples_is_the_weight_and_errors_are_told(tier, run, tmp_path):
    result = run("merge", tier.prior, tier.prior, "--output", tmp_path / "merged")
    assert result.status == 0
    heading, *layers = result.out.splitlines()
    assert heading.split() == ["name", "operator", "error"]
    assert any(line.split() == ["dense", "kronecker_sum", "0.00%"] for line in layers)
    assert "task 'symptoms+symptoms'" in layers[-1]
    assert "error of the curvature: largest 0.00%" in layers[-1]
    merged = ConsolidationPrior.from_pretrained(tmp_path / "merged")
    assert merged.provenance.merged == {"symptoms": 1.0}
    assert merged.provenance.num_examples == 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", 0), "rank 0 is no number of Kronecker products"),
        (("--weights", 1), "1 weights are given for 2 priors"),
        (("--damping", -1), "damping -1.0 is not a number"),
    ],
)
def test_what_cannot_be_merged_is_one_line(tier, run, tmp_path, words, message):
    output = tmp_path / "merged"
    result = run("merge", tier.prior, tier.prior, *words, "--output", output)
    assert (result.status, result.out) == (1, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("command", ["merge", "compress"])
def test_a_folder_of_something_else_is_refused_before_any_work(run, tmp_path, command):
    """The prior is not even looked for."""
    (tmp_path / "thesis.tex").write_text("all of it")
    result = run(command, tmp_path / "missing", "--output", tmp_path)
    assert result.status == 1
    assert "holds thesis.tex, which saving would delete" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["merge", "compress"])
def test_what_is_read_is_not_replaced(tier, run, tmp_path, command):
    prior = shutil.copytree(tier.prior, tmp_path / "prior")
    (tmp_path / "link").symlink_to(prior)
    more = ["--dtype", "bfloat16"] if command == "compress" else [tier.prior]
    for output in (prior, tmp_path / "link"):
        result = run(command, prior, *more, "--output", output)
        assert (result.status, result.out) == (1, "")
        assert "is the prior that is read; give --output another folder" in result.err
    saved = [ConsolidationPrior.from_pretrained(p).fingerprint for p in (prior, tier.prior)]
    assert saved[0] == saved[1]
