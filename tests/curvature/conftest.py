from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Every test starts from the same seed, in double precision."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors only: threads cost more than they gain
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
