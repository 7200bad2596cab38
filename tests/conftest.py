"""Data and networks that several tests share. Networks are trained here: nothing is read from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

pytest_plugins = ["pytester"]

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]


class DigitsNet(nn.Module):
    """Padding, stride and a hidden layer; activations are functions, not modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(12 * 4 * 4, 24)
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x)).flatten(1)
        return self.fc2(torch.relu(self.fc1(x)))


@pytest.fixture(scope="session")
def digits() -> tuple[Arrays, Arrays]:
    """(train, test): 500 and 300 of scikit-learn's digits, x float32 (N, 1, 8, 8) from 0 to 1, y int64 (N,)."""
    bunch = load_digits()
    x, y = (bunch.images / 16).astype(np.float32)[:, None], bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:500], order[500:800]
    return (x[train], y[train]), (x[test], y[test])


@pytest.fixture(scope="session")
def make_net(digits: tuple[Arrays, Arrays]) -> Callable[..., nn.Module]:
    """``make_net(seed, steps)``: a small network after some steps of Adam on the training digits."""

    def make(seed: int = 0, steps: int = 60) -> nn.Module:
        x, y = (torch.from_numpy(array) for array in digits[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = DigitsNet()
            optimizer = torch.optim.Adam(net.parameters(), 5e-3)
            for _ in range(steps):
                rows = torch.randint(len(x), (64,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        return net.eval()

    return make


@pytest.fixture(scope="session")
def digits_net(make_net: Callable[..., nn.Module]) -> nn.Module:
    """One such network, which no test may change."""
    return make_net()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, and on as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(kib)``: a folder on a disk of its own with so many KiB left; again, and they are left on the same.

    Skips where nothing can be mounted.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")

    def leave(kib: int) -> Path:
        filler = disk / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"\0" * shutil.disk_usage(disk).free)
        os.truncate(filler, filler.stat().st_size - 1024 * kib)
        return disk

    try:
        yield leave
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
