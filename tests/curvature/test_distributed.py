"""The number of processes does not change a curvature: two of them run all cases once."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, estimate, images
from tiny.data import choices, pad_choices
from tiny.layers import Mlp, vectors
from tiny.models import bert, bert_without_a_rule
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.errors import CurvatureError

CASES: dict[str, dict[str, Any]] = {
    "kronecker": {"curvature": "kronecker"},
    "reduce": {"curvature": "kronecker", "sharing": "reduce"},
    "average": {"curvature": "kronecker", "sharing": "average"},
    "diagonal": {"curvature": "diagonal"},
    "ekfac": {"curvature": "kronecker_eigen"},
    "sampled": {"curvature": "kronecker", "labels": "sampled"},
    "sampled_ekfac": {"curvature": "kronecker_eigen", "labels": "sampled"},
    "exact": {"curvature": "kronecker", "labels": "exact"},
    "fallback": {"curvature": "kronecker"},
    "fallback_ekfac": {"curvature": "kronecker_eigen", "labels": "sampled"},
    "part": {"curvature": "kronecker", "max_curvature_examples": 3},
    "rare_tokens": {"curvature": "kronecker", "min_token_examples": 3, "unknown_token_id": 1},
    "fewer_than_processes": {"curvature": "kronecker_eigen", "max_curvature_examples": 1},
}
WORLD = 2


class Routed(nn.Module):
    """A layer that an example far out does without, which the first examples do not show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        scores = self.first(x)
        return SequenceClassifierOutput(
            logits=scores if float(x.abs().max()) > FAR else scores + self.second(x).tanh()
        )


FAR = 50.0


def vectors_with(last: float) -> list[dict[str, Tensor]]:
    """Four examples; the last, of the second process, has a number of its own."""
    data = vectors(4)
    data[-1] = data[-1] | {"x": data[-1]["x"].index_fill(0, torch.tensor([0]), last)}
    return data


def run_cases() -> dict[str, Any]:
    """Estimate all cases; the same model and data in every process."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    plain, without_a_rule, data = bert(), bert_without_a_rule(), choices(5)
    results = {}
    for name, arguments in CASES.items():
        model = without_a_rule if name.startswith("fallback") else plain
        curvature = estimate(model, data, pad_choices(), curvature_batch_size=2, **arguments)
        results[name] = (curvature.num_examples, images(curvature))
    torch.manual_seed(0)
    routed = estimate(Routed(), vectors_with(2 * FAR), curvature_batch_size=1)
    assert [b.operator.kind for b in routed.blocks] == ["kronecker", "diagonal", "diagonal"]
    results["found_late"] = (routed.num_examples, images(routed))
    return results


def process(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    results = run_cases()
    model, data = Mlp(), vectors(3)
    try:
        estimate(model, vectors_with(float("nan")))
    except CurvatureError as error:
        results["failure"] = str(error)
    results["ddp"] = [images(estimate(m, data)) for m in (model, DistributedDataParallel(model))]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        multiprocessing.spawn(process, (str(folder),), nprocs=WORLD)
    return run_cases(), [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", [*CASES, "found_late"])
def test_two_processes_give_the_curvature_of_one(results: Any, case: str) -> None:
    alone, together = results
    count, expected = alone[case]
    for rank in range(WORLD):
        assert together[rank][case][0] == count
        assert_equal_matrices(together[rank][case][1], expected, rtol=1e-6)


def test_processes_agree_to_the_bit(results: Any) -> None:
    _, (first, second) = results
    for case in CASES:
        for name, image in first[case][1].items():
            assert torch.equal(image, second[case][1][name])


def test_all_processes_fail_together(results: Any) -> None:
    """What one process finds in its share, the others would wait for at their first sum."""
    first, second = (of_rank["failure"] for of_rank in results[1])
    assert "logits that are NaN" in second
    assert first == f"process 1 could not go on: {second}"


def test_ddp_is_unwrapped(results: Any) -> None:
    for of_rank in results[1]:
        plain, wrapped = of_rank["ddp"]
        assert_equal_matrices(wrapped, plain)
