"""Merging: which models are the same, which are not, and what becomes of merged files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from genmeasures.cli.main import main
from genmeasures.judging import judge
from genmeasures.results import collect, is_merged, load, save

Make = Callable[..., Any]


@pytest.fixture
def merge(tmp_path: Path) -> Callable[[], Any]:
    """Collects ``runs`` into ``merged``, where one file is expected; returns it with what was said."""

    def call() -> Any:
        found = collect(tmp_path / "runs", tmp_path / "merged")
        ((path, ds),) = found.files.items()
        xr.testing.assert_identical(load(path), ds)
        return ds, found

    return call


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# Hyperparameters and attributes -----------------------------------------------------------------------------


def test_other_hyper_parameters(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """A table of all models, in which a hyperparameter that a model lacks is empty."""
    write(runs / "a.nc", one("a0", hparams={"width": 0}), one("a1", hparams={"width": 1}), hparams='["width"]')
    write(runs / "b.nc", one("b0", hparams={"dropout": 0.5, "kind": "x"}), hparams='["dropout", "kind"]')
    write(runs / "c.nc", one("c0", [1.0, 2.0, 3.0], metrics={"test_iou": 0.25}), one("c1", None))
    ds, found = merge()
    assert ds["model"].values.tolist() == ["a0", "a1", "b0", "c0", "c1"]
    np.testing.assert_array_equal(ds["width"].values, [0, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(ds["dropout"].values, [np.nan, np.nan, 0.5, np.nan, np.nan])
    assert ds["kind"].values.tolist() == ["", "", "x", "", ""]
    np.testing.assert_array_equal(ds["test_iou"].values, [np.nan] * 3 + [0.25, np.nan])
    np.testing.assert_array_equal(ds["toy"].values[[0, 3, 4]], [[1, 2, np.nan], [1, 2, 3], [np.nan] * 3])
    assert json.loads(ds.attrs["hparams"]) == ["width", "dropout", "kind"]
    assert found.problems == found.remarks == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2], [0.5], [1, 2, 0.5]),
        ([1, 2], ["auto"], ["1", "2", "auto"]),
        ([1, None], ["auto"], ["1", "", "auto"]),
        ([0.1, None], ["auto"], ["0.1", "", "auto"]),
        ([True, False], [3], [1, 0, 3]),
        ([True, False], [None], [1, 0, None]),
        ([2**60 + 1, 1], [None], [str(2**60 + 1), "1", ""]),
        ([2**60 + 1, 1], [2], [2**60 + 1, 1, 2]),
        ([2**70, 1], [2], [str(2**70), "1", "2"]),
        ([1, None], [2**60 + 1], ["1", "", str(2**60 + 1)]),
    ],
)
def test_other_kinds_of_one_hyper_parameter(
    one: Make, write: Make, runs: Path, merge: Make, first: list[Any], second: list[Any], expected: list[Any]
) -> None:
    for file, values in (("a", first), ("b", second)):
        models = [one(f"{file}{i}", hparams={} if v is None else {"p": v}) for i, v in enumerate(values)]
        write(runs / f"{file}.nc", *models)
    ds, _ = merge()
    found = ds["p"].values.tolist()
    assert [None if isinstance(v, float) and np.isnan(v) else v for v in found] == expected


@pytest.mark.parametrize("sizes", [(100, 200), (100, None), (None, 100), (100, 100, 50)])
def test_test_sizes_that_differ(one: Make, write: Make, runs: Path, merge: Make, sizes: tuple[int | None, ...]) -> None:
    """The size of one file's test set must not be taken for that of all."""
    for number, size in enumerate(sizes):
        attrs = {} if size is None else {"test_size": size}
        write(runs / f"{number}.nc", one(f"m{number}"), **attrs)
    assert "test_size" not in merge()[0].attrs


def test_attributes_that_are_shared(one: Make, write: Make, runs: Path, merge: Make) -> None:
    shared = {"test_size": 100, "seed": 3, "extractor": "E()", "task_id": "x"}
    write(runs / "a.nc", one("a"), one("b"), **shared, seconds=3.0, created="2026-01-02", config="a", device="cpu")
    write(runs / "b.nc", one("c"), **shared, seconds=4.0, created="2026-01-01", config="b", device="cuda")
    attrs = merge()[0].attrs
    assert {name: attrs[name] for name in shared} == shared
    assert attrs["task"] == "toys"
    assert attrs["seconds"] == 7.0
    assert attrs["created"] == "2026-01-02"
    assert json.loads(attrs["sources"]) == ["a.nc", "b.nc"]
    assert not {"config", "device"} & set(attrs)


def test_other_test_sizes_give_no_sign_error(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """What a single file's test set says of noise is not said of all."""
    for file, size in (("a", 10_000), ("b", 10)):
        models = [
            one(f"{file}{i}", [i + 0.5], {"p": i, "file": file}, {"train_accuracy": 1.0, "test_accuracy": i / 10})
            for i in range(5)
        ]
        write(runs / f"{file}.nc", *models, hparams='["p", "file"]', test_size=size)
    judged = judge(merge()[0].isel(layer=[0]), "generalization_gap", resamples=10)
    assert np.isnan(judged["worst_sign_error"]).all()
    alone = judge(load(runs / "a.nc"), "generalization_gap", resamples=10)
    assert np.isfinite(alone["worst_sign_error"]).all()


def test_measures_with_another_unit_are_not_mixed(one: Make, write: Make, whole: Make, runs: Path, merge: Make) -> None:
    write(runs / "a.nc", one("a"))
    ds = whole(one("b"))
    ds["toy"].attrs["expected_accuracy"] = 1
    save(ds, runs / "b.nc")
    merged, found = merge()
    assert merged["model"].values.tolist() == ["a"]
    assert merged["toy"].attrs["expected_accuracy"] == -1
    (problem,) = found.problems
    assert problem.startswith(f"{runs / 'b.nc'}: toy differs in expected_accuracy from {runs / 'a.nc'}")


# Which models are the same -----------------------------------------------------------------------------------


def test_models_of_one_name_with_other_content(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """Two folders that both call their models net_0, even with equal values."""
    write(runs / "a.nc", one("net_0", content="aaaaaaaaaaaa"), one("net_1", content="b" * 12), task_id="1")
    write(runs / "b.nc", one("net_0", content="c" * 12), one("net_2", content="d" * 12), task_id="2")
    ds, found = merge()
    first, second, third, fourth = ds["model"].values
    assert (second, fourth) == ("net_1", "net_2")
    assert all(re.fullmatch(r"net_0 \[[0-9a-f]{8}\]", name) for name in (first, third))
    assert first != third
    assert ds["model_name"].values.tolist() == ["net_0", "net_1", "net_0", "net_2"]
    assert ds["model_content"].values.tolist() == [letter * 12 for letter in "abcd"]
    assert ds["model_task_id"].values.tolist() == ["1", "1", "2", "2"]
    assert "task_id" not in ds.attrs
    assert found.problems == found.remarks == []


def test_models_of_one_name_in_tasks_of_other_labels(one: Make, write: Make, runs: Path, merge: Make) -> None:
    for label in ("site_a", "site_b"):
        write(runs / f"{label}.nc", one("net_0", content="same"), task=label, task_id=label)
    ds, found = merge()
    assert ds["model"].values.tolist() == ["site_a/net_0", "site_b/net_0"]
    assert ds.attrs["task"] == "site_a, site_b"
    assert found.remarks == []


def test_one_content_in_two_tasks_of_one_label(one: Make, write: Make, runs: Path, merge: Make) -> None:
    for identity in ("1111111111", "2222222222"):
        write(runs / f"{identity}.nc", one("net", content="same"), task_id=identity)
    ds, _ = merge()
    assert all(re.fullmatch(r"net \[[0-9a-f]{8}\]", name) for name in ds["model"].values)
    assert len(set(ds["model"].values)) == 2


def test_contents_that_begin_alike(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """The same weights on other data: only the end of the content differs."""
    write(runs / "a.nc", one("net", content="weights-code-data1"), task_id="t")
    write(runs / "b.nc", one("net", content="weights-code-data2"), task_id="t")
    names = merge()[0]["model"].values.tolist()
    assert all(re.fullmatch(r"net \[[0-9a-f]{8}\]", name) for name in names)
    assert len(set(names)) == 2
    # What tells a model apart does not depend on what else is merged.
    write(runs / "0.nc", one("net", content="other"), task_id="t")
    assert merge()[0]["model"].values.tolist()[1:] == names


def test_contents_that_are_not_known_are_compared_by_values(one: Make, write: Make, runs: Path, merge: Make) -> None:
    write(runs / "1.nc", one("net", [1.0, 2.0]))
    write(runs / "2.nc", one("net", [1.0, 2.5]))
    write(runs / "3.nc", one("net", [1.0, 2.0 * (1 + 1e-9)]))  # another processor
    write(runs / "4.nc", one("net", [1.0, 2.0], {"width": 8}))
    write(runs / "5.nc", one("net", [1.0, 2.0, 3.0]))
    write(runs / "6.nc", one("net", [1.0, 2.0], layers=["conv0", "head"]))
    write(runs / "7.nc", one("net", [1.0, 2.0], content="known"))
    ds, found = merge()
    assert ds["model"].values.tolist() == [f"net [{number}]" for number in range(1, 6)]
    (third, seventh) = found.remarks
    assert third == f"{runs / '3.nc'}: model net already measured with the same settings in {runs / '1.nc'}; left out"
    assert seventh.startswith(f"{runs / '7.nc'}: model net already measured")


def test_the_first_of_equal_models_is_kept(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """Whatever files they are in; the label and the place of the task do not count where its identity is known."""
    write(runs / "1.nc", one("a", content="a"), one("b", content="b"), task_id="t", seconds=2.0)
    again = [one(name, content=name) for name in ("b", "c", "a")]
    write(runs / "2.nc", *again, task="moved", task_id="t", seconds=9.0)
    ds, found = merge()
    assert ds.attrs["seconds"] == 2.0 + 9.0 / 3
    assert ds["model_name"].values.tolist() == ["a", "b", "c"]
    assert found.problems == []
    (remark,) = found.remarks
    assert "2.nc: model b and 1 more already measured" in remark


def test_equal_models_with_other_values_are_told(one: Make, write: Make, runs: Path, merge: Make) -> None:
    write(runs / "1.nc", one("a", [1.0, 2.0], content="a"), task_id="t")
    write(runs / "2.nc", one("a", [1.0, 2.1], content="a"), task_id="t")
    write(runs / "3.nc", one("a", [1.0, 2.0], metrics={"test_accuracy": 0.5}, content="a"), task_id="t")
    ds, found = merge()
    assert ds["toy"].values.tolist() == [[1.0, 2.0]]
    assert found.remarks == []
    assert len(found.problems) == 2
    assert all("with different values; left out" in problem for problem in found.problems)


@pytest.mark.parametrize("first", ["failed", "measured"])
@pytest.mark.parametrize("identity", ["t", ""])
def test_a_model_that_failed_before(one: Make, write: Make, runs: Path, merge: Make, first: str, identity: str) -> None:
    """It is taken from the file in which it was measured, whichever comes first."""
    failed, measured = ("1.nc", "2.nc") if first == "failed" else ("2.nc", "1.nc")
    write(runs / failed, one("a", None, content=""), task_id=identity)
    write(runs / measured, one("a", content="a"), one("b", content="b"), task_id=identity)
    ds, found = merge()
    assert ds["model"].values.tolist() == ["a", "b"]
    assert ds["model_status"].values.tolist() == ["ok", "ok"]
    assert found.remarks == [f"{runs / failed}: model a failed and was measured in {runs / measured}; left out"]


def test_a_model_that_failed_in_a_task_that_is_not_known(one: Make, write: Make, runs: Path, merge: Make) -> None:
    """Nothing but name and hyperparameters tell whether it is the same."""
    write(runs / "1.nc", one("a", None, {"width": 1}))
    write(runs / "2.nc", one("a", hparams={"width": 2}))
    write(runs / "3.nc", one("a", hparams={"width": 1}))
    ds, found = merge()
    assert ds["width"].values.tolist() == [2, 1]
    assert ds["model_status"].values.tolist() == ["ok", "ok"]
    assert found.remarks == [f"{runs / '1.nc'}: model a failed and was measured in {runs / '3.nc'}; left out"]


def test_names_stay_apart_whatever_they_are(one: Make, write: Make, runs: Path, merge: Make) -> None:
    write(runs / "1.nc", one("net", [1.0]), one("net [1]"), one("net [1]'"))
    write(runs / "2.nc", one("net", [2.0]))
    ds, _ = merge()
    assert ds["model_name"].values.tolist() == ["net", "net [1]", "net [1]'", "net"]
    assert len(set(ds["model"].values)) == 4


def test_names_of_any_characters(one: Make, write: Make, runs: Path, merge: Make, capfd: Any) -> None:
    names = ["a/b", "[/x]", "nul\0", "\x1b[31mred", "\udcff", ":smile:", "line\nend", "größe"]
    for task in ("[/task]", "nul\0/\ud800"):
        write(runs / f"{len(task)}.nc", *(one(name, hparams={name: 1}) for name in names), task=task)
    # The same again, so that names are printed.
    write(runs / "twice.nc", *(one(name, hparams={name: 1}) for name in names[1:]), task="[/task]")
    ds, _ = merge()
    assert sorted(ds["model"].values) == sorted(f"{t}/{n}" for t in ("[/task]", "nul\0/\ud800") for n in names)
    assert main(["collect", str(runs)]) == 0
    out = capfd.readouterr().out
    assert "model [/x] and 6 more already measured" in out
    assert "\x1b" not in out
    assert "\0" not in out


# Merged files ------------------------------------------------------------------------------------------------


def test_merged_files_are_left_out_and_the_originals_taken(one: Make, write: Make, runs: Path, tmp_path: Path) -> None:
    for number in range(12):
        write(runs / f"{number:02}.nc", one(f"m{number}", [float(number)]))
    collect(runs, runs / "collected")
    write(runs / "99.nc", one("new", [99.0]))
    found = collect(runs, tmp_path / "elsewhere")
    ((path, ds),) = found.files.items()
    assert ds["model"].values.tolist() == [*(f"m{number}" for number in range(12)), "new"]
    assert is_merged(ds)
    assert json.loads(ds.attrs["sources"])[0] == "00.nc"
    assert found.problems == []
    assert found.remarks == [f"{runs / 'collected' / path.name}: a merged file, left out"]


@pytest.mark.parametrize("spelled", ["runs", "./runs/../runs", "absolute"])
@pytest.mark.parametrize("inside", [True, False])
def test_collecting_again_gives_the_same_bytes(
    one: Make, write: Make, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spelled: str, inside: bool
) -> None:
    """Also where merged files lie among the others, and however the folder is spelled."""
    monkeypatch.chdir(tmp_path)
    write(runs / "1.nc", one("a"), task="s", seconds=1.0)
    write(runs / "2.nc", one("a", [3.0]), task="t", seconds=0.1)
    contents = []
    for name in ["runs", spelled, spelled]:
        folder = runs if name == "absolute" else Path(name)
        found = collect(folder, folder if inside else folder / "collected")
        (path,) = found.files
        contents.append(path.read_bytes())
        assert found.problems == found.remarks == []
    assert len(set(contents)) == 1


def test_merged_files_alone_are_the_data(one: Make, write: Make, tmp_path: Path) -> None:
    """Of two places, each merged there; models keep the names and tasks that they have in them."""
    for place, task in (("x", "one"), ("y", "two")):
        write(tmp_path / place / "1.nc", one("a", content=f"{place}-content"), task=task, task_id=task)
        write(tmp_path / place / "2.nc", one("a", content="shared"), task="both", task_id="both")
        collect(tmp_path / place, tmp_path / "all" / place)
    found = collect(tmp_path / "all", tmp_path / "all")
    (ds,) = found.files.values()
    assert ds["model"].values.tolist() == ["one/a", "both/a", "two/a"]
    assert ds["model_task"].values.tolist() == ["one", "both", "two"]
    assert ds["model_content"].values.tolist() == ["x-content", "shared", "y-content"]
    assert ds.attrs["task"] == "one, both, two"
    assert found.problems == []
    (remark,) = found.remarks
    assert "model a already measured" in remark
    # Once more: the new file holds all that they do.
    again = collect(tmp_path / "all", tmp_path / "all")
    (same,) = again.files.values()
    assert sorted(same["model"].values) == sorted(ds["model"].values)


def test_a_merged_file_of_others_is_left_out_and_named(one: Make, write: Make, runs: Path, tmp_path: Path) -> None:
    write(tmp_path / "other" / "1.nc", one("gone"), one("there"))
    (old,) = collect(tmp_path / "other", runs / "old").files
    write(runs / "1.nc", one("there"))
    found = collect(runs, tmp_path / "merged")
    (ds,) = found.files.values()
    assert ds["model"].values.tolist() == ["there"]
    (remark,) = found.remarks
    assert remark.startswith(f"{old}: a merged file, left out, with 1 model (gone) without another result")


def test_a_merged_file_that_alone_holds_a_model_is_not_overwritten(one: Make, write: Make, runs: Path) -> None:
    write(runs / "1.nc", one("gone"))
    (path,) = collect(runs, runs / "collected").files
    before = path.read_bytes()
    (runs / "1.nc").unlink()
    write(runs / "2.nc", one("new"))
    found = collect(runs, runs / "collected")
    assert load(path)["model"].values.tolist() == ["new"]
    (remark,) = found.remarks
    (kept,) = path.parent.glob("*.old")
    assert str(kept) in remark
    assert "1 model (gone)" in remark
    assert kept.read_bytes() == before
    assert collect(runs, runs / "collected").remarks == []
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".old"] == [kept.name]


# What is left of killed processes ----------------------------------------------------------------------------


def test_leftovers_are_removed(one: Make, write: Make, runs: Path, tmp_path: Path) -> None:
    write(runs / "deep" / "1.nc", one("a"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = next(iter_host(tmp_path))
    (tmp_path / "merged").mkdir()
    (runs / "full.parts").mkdir()
    stale = [
        place / f".1.nc.{host}.{ended.pid}.0123456789abcdef.tmp"
        for place in (runs, runs / "deep", tmp_path / "merged", runs / "full.parts")
    ]
    own = runs / f".1.nc.{host}.{os.getpid()}.0123456789abcdef.tmp"
    for path in (*stale, own):
        path.write_bytes(b"half")
    write(runs / "full.parts" / "kept.nc", one("part"))
    for name, age in (("old.parts", 2 * 3600), ("new.parts", 0), ("full.parts", 2 * 3600)):
        (runs / name).mkdir(exist_ok=True)
        os.utime(runs / name, (time.time() - age,) * 2)
    found = collect(runs, tmp_path / "merged")
    assert found.problems == []
    assert not any(path.exists() for path in stale)
    assert own.exists()
    assert not (runs / "old.parts").exists()
    assert (runs / "new.parts").is_dir()
    assert (runs / "full.parts" / "kept.nc").is_file()


def iter_host(tmp_path: Path) -> Any:
    """The part of a temporary's name that stands for the machine."""
    from genmeasures.files import temporary_path

    yield temporary_path(tmp_path / "x").name.split(".")[2]


def test_folders_named_like_files_and_hidden_ones(one: Make, write: Make, runs: Path, merge: Make) -> None:
    write(runs / "1.nc", one("a"))
    write(runs / "folder.nc" / "2.nc", one("b"))
    write(runs / ".git" / "3.nc", one("c"))
    write(runs / ".4.nc", one("d"))
    ds, found = merge()
    assert ds["model"].values.tolist() == ["a", "b"]
    assert found.problems == []
