"""What every test stands on: two threads, seeds that do not move, and a home folder that is thrown away."""

import os
import random
import tempfile

# Before torch, NumPy and OpenCV come in, and for every process that a test starts. A spinning OpenMP starves its neighbours.
os.environ |= {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "GOMP_SPINCOUNT": "20000"}
HOME = tempfile.TemporaryDirectory(prefix="cnnbench-home-", ignore_cleanup_errors=True)
os.environ |= {"HOME": HOME.name, "XDG_CACHE_HOME": f"{HOME.name}/.cache", "CNNBENCH_CACHE": f"{HOME.name}/cnnbench"}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def same_start():
    "Each test starts from the same global random state and the same number of threads, whatever ran before it."
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(2)
