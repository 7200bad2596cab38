"""A data set that does not fit into memory is measured all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from torch import nn
from torch.utils.data import Dataset

import genmeasures

COUNT, SIZE = 2500, 160
torch.set_num_threads(1)


class Images(Dataset):
    def __init__(self, seed):
        self.seed = seed

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index >= COUNT:
            raise IndexError
        generator = torch.Generator().manual_seed(self.seed + index)
        level = torch.rand(3, 1, 1, generator=generator)
        return level + torch.rand(3, SIZE, SIZE, generator=generator), index % 3


torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
net.eval()(torch.zeros(1, 3, SIZE, SIZE))
small = [(torch.rand(40, 3, SIZE, SIZE), torch.arange(40) % 3) for _ in range(2)]
genmeasures.measure([net], *small, batch_size=20)

used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
whole = COUNT * 3 * SIZE * SIZE * 4
allowance = ALLOWANCE * 2**20
assert whole > 2 * allowance
resource.setrlimit(resource.RLIMIT_DATA, (used + allowance, used + allowance))
try:
    torch.zeros(COUNT, 3, SIZE, SIZE)
    print("the limit does not hold")
except RuntimeError:
    pass
ds = genmeasures.measure([net], Images(0), Images(10_000), batch_size=20)
for name in ("davies_bouldin", "roughness", "confidence"):
    assert bool(ds[name].notnull().all()), ds[name + "_status"].values
print("measured", ds.sizes["layer"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's limit on data is Linux's")
def test_a_data_set_larger_than_its_allowance() -> None:
    """Two splits of 770 MB each, of which less than half would fit."""
    script = SCRIPT.replace("ALLOWANCE", "320")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.splitlines() == ["measured 3"], done.stdout + done.stderr
