"""A user's tour with a folder of checkpoints: claims, normalization, splits, tables, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from torch import nn

from genmeasures.cli.main import main
from genmeasures.results import load

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(36 * width, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))
"""


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(36 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.conv(x).relu().flatten(1))
        return out


@pytest.fixture(scope="module")
def trained(digits: Any) -> dict[int, tuple[dict[str, Any], float, float]]:
    """By width: weights, train and test accuracy, of networks trained on inputs from −1 to 1."""
    made = {}
    with torch.random.fork_rng(devices=[]):
        for width in (3, 5):
            torch.manual_seed(width)
            net = Net(width)
            (x, y), (x_test, y_test) = ((2 * torch.from_numpy(x) - 1, torch.from_numpy(y)) for x, y in digits)
            optimizer = torch.optim.Adam(net.parameters(), 1e-2)
            for _ in range(30):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            with torch.no_grad():
                shares = [float((net(a).argmax(1) == b).double().mean()) for a, b in ((x, y), (x_test, y_test))]
            made[width] = (net.state_dict(), round(shares[0], 3), round(shares[1], 3))
    return made


class Tour:
    """A folder with the networks, and what the command says of it."""

    def __init__(self, folder: Path, digits: Any, trained: Any, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd, self.trained = folder / "nets", capfd, trained
        self.folder.mkdir()
        self.module = f"tour_{folder.name}"
        (self.folder / f"{self.module}.py").write_text(MODULE)
        (x, y), (x_test, y_test) = digits
        np.savez(self.folder / "d.npz", x=x[:200], y=y[:200], x_test=x_test[:200], y_test=y_test[:200])
        for width, (state, _, _) in trained.items():
            torch.save(state, self.folder / f"net_{width}.ckpt")
        split = {"npz": "d.npz", "layout": "NCHW", "mean": 0.5, "std": 0.5}
        self.manifest: dict[str, Any] = {
            "factory": f"{self.module}.Net",
            "python_path": ".",
            "data": {"train": {**split, "x": "x", "y": "y"}, "test": {**split, "x": "x_test", "y": "y_test"}},
            "models": {
                f"net_{width}": {"train_accuracy": train, "test_accuracy": test, "hparams": {"width": width}}
                for width, (_, train, test) in trained.items()
            },
        }

    def run(self, *overrides: str, path: str = "") -> tuple[int, str]:
        (self.folder / "manifest.yaml").write_text(yaml.safe_dump(self.manifest, sort_keys=False))
        fixed = (
            "task=checkpoints",
            f"task.path={path or self.folder}",
            "figures=false",
            f"output={self.folder.parent / 'out'}",
        )
        status = main(["run", *fixed, "extractor.cap=200", "extractor.fit_cap=200", *overrides])
        captured = self.capfd.readouterr()
        return status, captured.out + captured.err

    def result(self) -> xr.Dataset:
        (path,) = (self.folder.parent / "out").glob("nets-*.nc")
        return load(path)


@pytest.fixture
def tour(
    tmp_path: Path, digits: Any, trained: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Tour:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return Tour(tmp_path, digits, trained, capfd)


def lines(said: str, part: str) -> list[str]:
    return [line for line in said.splitlines() if part in line]


def test_claims_that_hold_and_a_wrong_normalization_that_is_mended(tour: Tour) -> None:
    status, said = tour.run("measure=[roughness]")
    assert status == 0
    assert not lines(said, "claimed")
    ds = tour.result()
    assert ds["model_status"].values.tolist() == ["ok", "ok"]
    before = ds["measured_test_accuracy"].values
    for split in tour.manifest["data"].values():
        split["mean"], split["std"] = 0.0, 0.05
    _, said = tour.run("measure=[roughness]")
    (train, test) = lines(said, ", claimed ")
    assert test.startswith("2 of 2 models (net_3, net_5), for example: test accuracy is ")
    assert train.index("accuracy") < said.index("result: ")
    table = said.index("roughness │") if "roughness │" in said else said.index("generalization_gap")
    assert table < said.index(", claimed ")  # under the table
    ds = tour.result()
    assert all("test accuracy is" in str(one) for one in ds["model_status"].values)
    assert ds["test_accuracy"].values.tolist() == [test for _, _, test in tour.trained.values()]
    for split in tour.manifest["data"].values():
        split["mean"], split["std"] = 0.5, 0.5
    status, said = tour.run("measure=[roughness]")
    assert status == 0
    assert not lines(said, "claimed")
    ds = tour.result()
    np.testing.assert_array_equal(ds["measured_test_accuracy"].values, before)
    assert ds["model_status"].values.tolist() == ["ok", "ok"]


def test_claims_are_compared_anew_with_what_was_kept(tour: Tour) -> None:
    tour.run("measure=[roughness]")
    tour.manifest["models"]["net_3"]["test_accuracy"] = 0.11
    del tour.manifest["models"]["net_5"]["test_accuracy"]
    _, said = tour.run("measure=[roughness]")
    assert lines(said, "2 of 2 models reused from")
    (line,) = lines(said, ", claimed 0.11")
    assert line.startswith("1 of 2 models (net_3): test accuracy is ")
    ds = tour.result()
    assert ds["test_accuracy"].values.tolist() == [0.11, float(ds["measured_test_accuracy"][1])]
    assert np.isfinite(ds["generalization_gap"].values).all()


def test_nothing_is_claimed(tour: Tour) -> None:
    for model in tour.manifest["models"].values():
        del model["train_accuracy"], model["test_accuracy"]
    status, said = tour.run("measure=[roughness]")
    assert status == 0
    ds = tour.result()
    claims = [(train, test) for _, train, test in tour.trained.values()]
    assert np.abs(ds["test_accuracy"].values - [test for _, test in claims]).max() < 0.08  # a part of the data
    np.testing.assert_allclose(ds["generalization_gap"], ds["train_accuracy"] - ds["test_accuracy"])
    assert "are not judged" not in said


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split(tour: Tour, split: str) -> None:
    tour.manifest["data"] = {split: tour.manifest["data"][split]}
    status, said = tour.run("measure=[davies_bouldin,roughness,confidence]")
    assert status == 0
    ds = tour.result()
    missing = "davies_bouldin" if split == "test" else "roughness"
    other = "train" if split == "test" else "test"
    assert lines(said, f"{missing} needs {other} data, and none are given")
    for name in ("davies_bouldin", "roughness", "confidence"):
        assert np.isfinite(ds[name].values).all() == ((name == "davies_bouldin") == (split == "train"))


def test_unlabeled_new_data(tour: Tour) -> None:
    tour.manifest["data"] = {"test": tour.manifest["data"]["test"]}
    del tour.manifest["data"]["test"]["y"]
    status, _ = tour.run("measure=[roughness]")
    assert status == 0
    ds = tour.result()
    assert np.isfinite(ds["roughness"].values).all()
    assert "fitted on the test sample" in str(ds["roughness_status"].values[0, 0])
    assert np.isnan(ds["measured_test_accuracy"].values).all()


def test_no_data(tour: Tour) -> None:
    del tour.manifest["data"]
    status, said = tour.run("measure=[roughness]")
    assert status == 1
    assert lines(said, "error: there are no data: pass train, test or both (roughness needs test data")


def test_a_table_with_arguments_of_the_factory_and_another_metric(tour: Tour) -> None:
    rows = [f"net_{width},{width},{test * 100:.1f}" for width, (_, _, test) in tour.trained.items()]
    (tour.folder / "t.csv").write_text("\n".join(["run,factory_kwargs.width,test_acc", *rows]) + "\n")
    tour.manifest["models"] = {"table": "t.csv", "columns": {"run": "model"}}
    status, said = tour.run("measure=[roughness]")
    assert status == 1
    assert lines(said, "the column 'test_acc' is named like a metric")
    tour.manifest["metric"] = "acc"
    status, said = tour.run("measure=[roughness]")
    assert status == 0
    assert not lines(said, "claimed")
    ds = tour.result()
    assert ds["test_acc"].values.tolist() == [float(f"{test * 100:.1f}") for _, _, test in tour.trained.values()]
    assert ds["model_status"].values.tolist() == ["ok", "ok"]


def test_a_common_mistake_is_one_line(tour: Tour) -> None:
    tour.manifest["factory"] = f"{tour.module}.Nett"
    status, said = tour.run("measure=[roughness]")
    assert status == 1
    assert len(lines(said, "has no 'Nett'; did you mean 'Net'?")) <= 3  # the first, the log's error and the last line
    assert lines(said, "none of 2 models could be measured, for the same reason")


def test_two_folders_with_modules_of_one_name(
    tour: Tour, tmp_path: Path, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as a sweep does it."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("d.npz", "net_3.ckpt", "net_5.ckpt"):
        (other / name).write_bytes((tour.folder / name).read_bytes())
    (other / f"{tour.module}.py").write_text(MODULE.replace(".relu()", ".tanh()"))
    (tour.folder / "manifest.yaml").write_text(yaml.safe_dump(tour.manifest))
    (other / "manifest.yaml").write_text(yaml.safe_dump(tour.manifest))
    status, said = tour.run("measure=[roughness]", "-m", path=f"{tour.folder},{other}")
    assert status == 0, said
    found = {path.name.partition("-")[0]: load(path) for path in (tmp_path / "out").glob("*.nc")}
    assert set(found) == {"nets", "other"}
    assert found["nets"]["layer_tap"].values[0, 0] == "Conv2d > relu"
    assert found["other"]["layer_tap"].values[0, 0] == "Conv2d > tanh"
