import pytest
import torch
from tiny.layers import Mlp
from tiny.words import Bag, data
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from hf_kfc import ConsolidationPrior
from hf_kfc.audit.membership import area_under_curve, membership_auc
from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import PriorError
from hf_kfc.priors.privacy import without_rare_inputs

KINDS = ["diagonal", "kronecker", "kronecker_eigen"]


def vectors(count: int, width: int) -> list[dict[str, Tensor]]:
    return [{"x": torch.randn(width), "labels": torch.randint(2, ())} for _ in range(count)]


def estimate(model: nn.Module, examples: list, kind: str = "kronecker") -> ConsolidationPrior:
    args = CurvatureArguments(curvature=kind)
    return ConsolidationPrior.estimate(model, examples, default_collate, args, task="notes")


def told_apart(
    prior: ConsolidationPrior, model: nn.Module, members: list, others: list, **settings
):
    found = membership_auc(prior, model, members, others, default_collate, **settings)
    return {separation.score: separation for separation in found}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_the_auc_counts_pairs_and_half_of_ties():
    positives, negatives = torch.randint(6, (30,)), torch.randint(4, (20,))
    pairs = [float(p > n) + 0.5 * float(p == n) for p in positives for n in negatives]
    assert any(pair == 0.5 for pair in pairs)
    auc, low, high = area_under_curve(positives, negatives)
    assert auc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert low < auc < high


def test_the_interval_holds_the_true_value_nineteen_times_in_twenty():
    true = float(torch.distributions.Normal(0, 1).cdf(torch.tensor(1 / 2**0.5)))
    held = []
    for _ in range(1000):
        _, low, high = area_under_curve(torch.randn(60) + 1, torch.randn(90))
        held.append(low <= true <= high)
    assert 0.93 < sum(held) / len(held) < 0.97


class Grouped(Mlp):
    """A convolution in two groups, each of which reads six numbers at three positions."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        self.grouped = nn.Conv1d(4, 4, 3, groups=2)

    def forward(self, x: Tensor):
        return super().forward(self.grouped(x.unflatten(-1, (4, 4))).flatten(1))


class Chosen(Mlp):
    """Three experts of which the first number of an example chooses one, and none the last."""

    def __init__(self) -> None:
        super().__init__(8, 2)
        config = MixtralConfig(
            hidden_size=8,
            intermediate_size=4,
            num_local_experts=3,
            experts_implementation="eager",
        )
        self.experts = MixtralExperts(config)
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor):
        chosen = (x[:, :1] > 0).long()
        return super().forward(self.experts(x, chosen, torch.ones_like(x[:, :1])))


@pytest.mark.parametrize("kind", ["diagonal", "kronecker"])
def test_the_leverage_of_groups_is_that_of_each_ones_inputs(kind):
    members, others, model = vectors(20, 16), vectors(15, 16), Grouped()
    told = told_apart(estimate(model, members, kind), model, members, others)

    def patches(examples: list) -> Tensor:  # [examples, groups, positions, inputs and 1]
        x = torch.stack([e["x"] for e in examples]).unflatten(-1, (2, 2, 4)).unfold(-1, 3, 1)
        x = x.permute(0, 1, 3, 2, 4).flatten(3)
        return torch.cat([x, torch.ones(*x.shape[:3], 1)], -1)

    if kind == "kronecker":
        seen = patches(members)
        moments = torch.einsum("ngri,ngrj->gij", seen, seen) / (len(members) * 2)
    else:
        estimated = estimate(model, members, kind).curvature.blocks
        (block,) = [b for b in estimated if b.name == "grouped"]
        rows = block.operator.matrix(4, 7).diagonal().reshape(2, 2, 7)
        moments = rows.sum(1).diag_embed()
    size = moments.diagonal(dim1=1, dim2=2).mean()
    inverses = torch.linalg.inv(moments + 1e-3 * size * torch.eye(7))

    def scores(examples: list) -> Tensor:
        own = patches(examples)
        return -torch.einsum("ngri,gij,ngrj->ngr", own, inverses, own).mean((1, 2))

    expected = area_under_curve(scores(members), scores(others))[0]
    assert told["inputs of grouped"].auc == pytest.approx(expected, abs=1e-6)


def test_members_are_told_by_the_inputs_of_experts_and_most_by_one_that_none_of_them_chose():
    members, others, model = vectors(12, 8), vectors(12, 8), Chosen()
    prior = estimate(model, members)
    assert "kronecker_stack" in {block.operator.kind for block in prior.curvature.blocks}
    assert told_apart(prior, model, members, others)["inputs of experts.gate_up_proj"].auc > 0.9
    for part, sign in ((members, 1), (others, -1)):
        for example in part:
            example["x"][0] = sign * example["x"][0].abs()
    told = told_apart(estimate(model, members), model, members, others)
    assert told["inputs of experts.gate_up_proj"].auc == 1


def test_members_are_told_where_few_of_them_shape_many_directions():
    members, others, model = vectors(30, 60), vectors(30, 60), Mlp(60, 2)
    told = told_apart(estimate(model, members), model, members, others)
    assert told.keys() == {"loss", "inputs of net.0"}
    assert told["inputs of net.0"].auc > 0.99
    assert told["loss"].low < 0.5 < told["loss"].high


def test_members_are_not_told_where_they_are_many():
    members, others, model = vectors(2000, 4), vectors(500, 4), Mlp(4, 2)
    told = told_apart(estimate(model, members), model, members, others)["inputs of net.0"]
    assert told.low < 0.5 < told.high
    assert told.high - told.low < 0.06


@pytest.mark.parametrize("kind", ["kronecker", "kronecker_eigen"])
def test_the_score_of_a_layer_is_minus_the_leverage_of_its_inputs(kind):
    members, others, model = vectors(20, 5), vectors(15, 5), Mlp(5, 2)
    prior = estimate(model, members, kind)
    (block,) = prior.curvature.blocks
    fisher = block.operator.matrix(2, 6).reshape(2, 6, 2, 6)
    moment = torch.einsum("iaib->ab", fisher)  # up to a factor, which moves no score
    inverse = torch.linalg.inv(moment + 1e-3 * moment.diagonal().mean() * torch.eye(6))

    def scores(examples: list) -> Tensor:
        a = torch.stack([torch.cat([e["x"], torch.ones(1)]) for e in examples])
        return -torch.einsum("na,ab,nb->n", a, inverse, a)

    told = told_apart(prior, model, members, others)["inputs of net.0"]
    expected = area_under_curve(scores(members), scores(others))
    assert (told.auc, told.low, told.high) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_of_an_embedding_is_the_share_of_tokens_seen(kind):
    model, examples = Bag(), data()
    members, others = examples[12:], examples[:12]  # only the others hold tokens 6 and 7
    whole = estimate(model, members, kind)
    public = without_rare_inputs(whole)
    kept = set(public.curvature.blocks[0].inputs.tolist())
    assert 8 not in kept  # of nine examples
    for prior, seen in ((whole, {0, 1, 2, 3, 4, 8}), (public, kept)):
        shares = [
            torch.tensor([sum(int(t) in seen for t in e["input_ids"]) for e in part])
            for part in (members, others)
        ]
        told = told_apart(prior, model, members, others)["tokens of words"]
        assert told.auc == pytest.approx(area_under_curve(*shares)[0])
        assert told.auc > 0.55


def test_the_loss_is_scored_without_the_prior():
    model, examples = Bag(), data()
    prior = ConsolidationPrior.l2(model, task="notes")
    told = told_apart(prior, model, examples[:20], examples[20:])
    assert told.keys() == {"loss"}
    with torch.no_grad():
        batch = default_collate(examples)
        logits = model(batch["input_ids"]).logits
    losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    expected = area_under_curve(-losses[:20], -losses[20:])
    assert told["loss"].auc == pytest.approx(expected[0])


def test_the_batch_size_changes_nothing_and_the_model_is_left_as_it_was():
    members, others, model = vectors(20, 5), vectors(15, 5), Mlp(5, 2).train()
    prior = estimate(model, members)
    whole = told_apart(prior, model, members, others)
    parts = told_apart(prior, model, members, others, batch_size=3)
    assert parts == whole
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_too_few_examples_and_another_model_are_refused():
    model, examples = Bag(), data()
    prior = estimate(model, examples)
    with pytest.raises(PriorError, match="1 members and 39 non-members are too few"):
        membership_auc(prior, model, examples[:1], examples[1:], default_collate)
    with pytest.raises(PriorError, match="does not fit Mlp"):
        membership_auc(prior, Mlp(3, 2), examples, examples, default_collate)


def test_a_model_that_gives_no_numbers_is_refused():
    members, others, model = vectors(20, 5), vectors(15, 5), Mlp(5, 2)
    prior = estimate(model, members)
    others[0]["x"][0] = torch.nan
    with pytest.raises(PriorError, match="NaN for 1 of 15 non-members"):
        membership_auc(prior, model, members, others, default_collate)
