import re
from dataclasses import replace

import pytest
import torch
from huggingface_hub import ModelCard
from tiny.priors import PROVENANCE, prior

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.card import prior_card

from .test_compression import large

SHA = "0123456789abcdef0123456789abcdef01234567"


def card_of(**changes: object) -> ModelCard:
    made = prior()
    own = ConsolidationPrior(made.anchor, made.curvature, replace(PROVENANCE, **changes))
    return ModelCard(prior_card(own, "org/a-kfc"))


def test_the_card_links_to_the_model_at_its_commit():
    for card in (
        ModelCard(prior_card(prior(), "org/a-kfc", base_model=f"org/a@{SHA}")),
        card_of(base_model="org/a", base_revision=SHA),
    ):
        assert (card.data.base_model, card.data.base_model_revision) == ("org/a", SHA)
        assert f"[org/a](https://huggingface.co/org/a/tree/{SHA})" in card.text


@pytest.mark.parametrize("revision", [None, "main", SHA.upper()])
@pytest.mark.parametrize("base", ["org/a", "/home/me/runs/tier1", ""])
def test_what_is_no_commit_is_no_link(base, revision):
    card = card_of(base_model=base, base_revision=revision)
    assert card.data.base_model is None
    assert "base_model_revision" not in card.data
    assert f"a model ({base or 'not named'})," in card.text


def test_every_layer_is_listed_with_kind_and_size():
    made = prior()
    lines = ModelCard(prior_card(made, "org/a-kfc")).text.splitlines()
    for block in made.curvature.blocks:
        q, p = block.shape
        (line,) = [line for line in lines if line.startswith(f"| `{block.name}` |")]
        assert f"| {block.operator.kind} | {q} \N{MULTIPLICATION SIGN} {p}" in line
    total = sum(anchor.numel() for anchor in made.anchor.values())
    (told,) = [line for line in lines if line.startswith(f"{total} parameters are held, by ")]
    shares = re.findall(r"(\w+) (\d+\.\d)%", told)
    assert {kind for kind, _ in shares} == {b.operator.kind for b in made.curvature.blocks}
    assert sum(float(share) for _, share in shares) == pytest.approx(100, abs=0.5)
    (line,) = [line for line in lines if line.startswith("Left to move freely: ")]
    assert all(f"`{name}`" in line for name in made.curvature.ignored)


def test_counts_labels_and_metrics_are_told():
    text = card_of(num_examples=12345).text
    for row in (
        "| examples of the task | 12,345 |",
        f"| examples that the curvature is a mean over | {prior().curvature.num_examples} |",
        "| labels of the Fisher | exact |",
        "| positions that share a weight | expand |",
        "| accuracy on the task, when it was learnt | 0.3 |",
    ):
        assert row in text.splitlines()
    assert "with N_old = 12,345." in text
    without = card_of(num_examples=0, labels=None, sharing=None, curvature="identity").text
    assert "There is no default λ" in without


def test_what_is_left_out_is_told():
    assert "Nothing was left out" in card_of().text
    assert "Nothing was left out" in card_of(min_examples=0, dropped_inputs={"words": 0}).text
    text = card_of(min_examples=10, dropped_inputs={"words": 1234}).text
    assert "Nothing was left out" not in text
    assert "Tokens in fewer than 10 examples are left out" in text
    assert "Of `words`: 1,234 tokens." in text
    assert "had a part in" in text
    before = card_of(min_examples=10, min_token_examples=10).text
    assert "had a part in" not in before
    assert "fewer than 10 examples were read as the unknown token" in before


def test_merged_and_compressed_priors_say_so():
    plain = card_of().text
    assert "relative error" not in plain
    assert "| layer | curvature | covers | MB |\n" in plain
    errors = {block.name: 0.01 * n for n, block in enumerate(prior().curvature.blocks)}
    card = card_of(
        base_model="",
        base_revision=None,
        merged={"a": 0.25, "b": 0.75},
        merge_damping=0.3,
        approximation_errors=errors,
    )
    text = card.text.lstrip()
    assert text.startswith(
        '# What models knew of the tasks "a", "b"\n\nA merged consolidation prior'
    )
    assert "none of the task's data" not in text
    assert "damping=0.3" in text
    lines = text.splitlines()
    for row in (
        "| weight of the curvature of b | 0.75 |",
        "| damping that the anchor was found for | 0.3 |",
        "| relative error of the curvature (Frobenius norm), at most | "
        "largest 13.00% (transposed), median 6.50% |",
    ):
        assert row in lines
    (line,) = [line for line in lines if line.startswith("| `small` |")]
    assert line.endswith("| 0.00 | 9.00% |")
    heading = lines.index("| layer | curvature | covers | MB | error |")
    assert lines[heading + 1] == "|---|---|---:|---:|---:|"


def test_sizes_are_those_of_what_is_stored():
    text = prior_card(large().compress(dtype=torch.bfloat16), "org/a-kfc")
    (line,) = [line for line in text.splitlines() if line.startswith("| `wide` |")]
    assert line.split("|")[4].strip() == f"{2 * (31**2 + 24**2) / 1e6:.2f}"


def test_licence_and_statement():
    card = ModelCard(
        prior_card(
            prior(),
            "org/a-kfc",
            license_id="mit",
            data_statement="Mine.",
        )
    )
    assert card.data.license == "mit"
    assert "## Licence and data\n\nMine.\n" in card.text
    plain = card_of()
    assert plain.data.license is None
    assert "The publisher has made no statement about the data." in plain.text
    assert 'from_pretrained("org/a-kfc")' in plain.text


def test_names_of_others_are_no_markup():
    """Of a downloaded prior that is pushed again: no link, tag, cell or heading of its own."""
    evil = "x\n# Verified\n[click](javascript:alert(1)) <script>1</script> | 1 | `code` \x1b[2J"
    made = prior()
    errors = {evil: 0.1}
    names = {"task": evil, "labels": evil, "sharing": evil, "curvature": evil, "base_model": evil}
    numbers = {"anchor_metrics": {evil: 1.0}, "merged": {evil: 1.0}, "dropped_inputs": {evil: 1}}
    for more in ({}, {"merged": {}}):
        origin = replace(
            PROVENANCE,
            **{**names, **numbers, **more},
            min_examples=10,
            approximation_errors=errors,
            library_versions={evil: evil},
        )
        words, *others = made.curvature.blocks
        blocks = (replace(words, name=evil), *others)
        curvature = replace(made.curvature, blocks=blocks, ignored=(evil,))
        card = prior_card(ConsolidationPrior(made.anchor, curvature, origin), "org/a-kfc")
        assert evil.count("|") == 2
        plain = prior_card(made, "org/a-kfc")
        headings = [line for line in card.splitlines() if line.startswith("#")]
        assert len(headings) == len([line for line in plain.splitlines() if line.startswith("#")])
        assert "\x1b" not in card
        text = re.sub(r"`[^`\n]*(?<!\\)`", "", card.replace("\\`", ""))
        assert "<script>" not in text
        assert not re.search(r"(?<!\\)\[click", text)
        rows = [line for line in card.splitlines() if line.startswith("| ") and "Verified" in line]
        assert len(rows) >= 4
        for row in rows:
            assert len(re.findall(r"(?<!\\)\|", row)) in (3, 6)  # a table of two columns or of five
