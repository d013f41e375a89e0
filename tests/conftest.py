"""What every test stands on: two threads, seeds that do not move, and a home folder that is thrown away."""

import os
import random
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before torch, NumPy and OpenCV come in, and for every process that a test starts. A spinning OpenMP starves its neighbours.
os.environ |= {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "GOMP_SPINCOUNT": "20000"}
HOME = tempfile.TemporaryDirectory(prefix="cnnbench-home-", ignore_cleanup_errors=True)
os.environ |= {"HOME": HOME.name, "XDG_CACHE_HOME": f"{HOME.name}/.cache", "CNNBENCH_CACHE": f"{HOME.name}/cnnbench"}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def same_start():
    "Each test starts from the same global random state and the same number of threads, whatever ran before it."
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(2)


def join(rank: int, port: int, folder: str, work: Callable[[int], object]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try: torch.save(work(rank), f"{folder}/{rank}.pt")
    finally: dist.destroy_process_group()


def in_two_processes(work: Callable[[int], object], folder: Path) -> tuple:
    "What `work(rank)` gives, tensors and plain values, in each of two processes that are joined by gloo."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(join, (port, str(folder), work), nprocs=2)
    return tuple(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
