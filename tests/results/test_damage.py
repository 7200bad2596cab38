"""Full disks and damaged files: an error that names the file, never another value and never a crash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import genmeasures
import genmeasures.files
from genmeasures.cli.main import main
from genmeasures.errors import ResultError
from genmeasures.failures import is_shortage
from genmeasures.results import SCHEMA_VERSION, collect, load, save

Make = Callable[..., Any]
SIZES = range(0, 64, 4)
"""KiB left on a disk."""


@pytest.fixture(scope="module")
def result(one: Make, whole: Make) -> xr.Dataset:
    """About 40 KiB as a file: more than some of the sizes, less than others."""
    models = [one(f"net {i}", np.arange(20.0) + i, {"width": i, "optim/lr": "0.1"}) for i in range(8)]
    return whole(*models, hparams=json.dumps(["width", "optim/lr"]))


@pytest.fixture(scope="module")
def file(result: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(result, tmp_path_factory.mktemp("whole") / "result.nc").read_bytes()


# Full disks -------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up(result: xr.Dataset, file: bytes, small_disk: Callable[[int], Path]) -> None:
    """A clean error at every size at which the file has no room, and what was there stays."""
    assert 4 * 1024 < len(file) < 60 * 1024
    for kib in SIZES:
        path = small_disk(kib) / "result.nc"
        if 1024 * kib >= len(file):
            xr.testing.assert_identical(load(save(result, path)), result)
            path.unlink()
        else:
            with pytest.raises(ResultError, match=r"/result\.nc: No space left on device; make room") as caught:
                save(result, path)
            assert is_shortage(caught.value)
        assert [left.name for left in path.parent.iterdir()] == ["filler"]


def test_a_full_disk_does_not_end_the_process(
    result: xr.Dataset, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """HDF5 crashed where this could not be caught, so that another process has to try."""
    source = save(result, tmp_path / "source.nc")
    script = (
        "import sys\n"
        "from genmeasures.errors import ResultError\n"
        "from genmeasures.results import load, save\n"
        "try:\n"
        "    save(load(sys.argv[1]), sys.argv[2])\n"
        "except ResultError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )
    path = small_disk(16) / "result.nc"
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: cannot write the result {path}: No space left on device; make room, or choose another output folder\n"
    )


def test_a_full_disk_keeps_what_was_there(result: xr.Dataset, small_disk: Callable[[int], Path]) -> None:
    path = save(result, small_disk(64) / "result.nc")
    small_disk(16)
    with pytest.raises(ResultError, match="No space left"):
        save(result.assign_attrs(task="another"), path)
    xr.testing.assert_identical(load(path), result)
    # With room, the same call succeeds.
    save(result.assign_attrs(task="another"), small_disk(64) / "result.nc")
    assert load(path).attrs["task"] == "another"


def test_collecting_onto_a_full_disk(
    result: xr.Dataset, tmp_path: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save(result, tmp_path / "runs" / "a.nc")
    output = small_disk(8) / "merged"
    command = ["collect", str(tmp_path / "runs"), "--output", str(output)]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write the result {output}")
    small_disk(200)
    assert main(command) == 0
    (merged,) = output.glob("*.nc")
    assert load(merged).sizes["model"] == 8


@pytest.mark.parametrize("kib", SIZES)
def test_a_write_that_fails_midway(
    result: xr.Dataset, file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kib: int
) -> None:
    """The same where nothing can be mounted: the disk takes so many KiB and no more."""

    class Disk:
        """A file on a full disk."""

        def __init__(self, handle: int) -> None:
            self.file = os.fdopen(handle, "wb")

        def __enter__(self) -> Disk:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, content: bytes) -> None:
            self.file.write(content[: 1024 * kib])
            if len(content) > 1024 * kib:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return self.file.fileno()

    monkeypatch.setattr(genmeasures.files, "open", lambda handle, mode: Disk(handle), raising=False)
    path = tmp_path / "result.nc"
    if 1024 * kib < len(file):
        with pytest.raises(ResultError, match=r"result\.nc: No space left on device; make room"):
            save(result, path)
        assert list(tmp_path.iterdir()) == []
    else:
        save(result, path)
        monkeypatch.undo()
        xr.testing.assert_identical(load(path), result)


def test_what_is_measured_while_the_disk_is_full_is_returned(
    digits: Any, digits_net: Any, small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    (x, y), _ = digits
    parts = small_disk(4) / "parts"
    ds = genmeasures.measure({"net": digits_net}, (x[:60], y[:60]), measures=["davies_bouldin"], keep=parts)
    assert ds["model_status"].values.tolist() == ["ok"]
    assert np.isfinite(ds["davies_bouldin"].values).all()
    assert "No space left on device" in caplog.text
    assert list(parts.iterdir()) == []


# Damaged files ----------------------------------------------------------------------------------------------


def damaged(path: Path, content: bytes) -> None:
    """Nothing but an error that names the file, and soon."""
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(ResultError, match=r"result\.nc"):
        load(path)
    assert time.perf_counter() - began < 10


def test_single_flipped_bits(file: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Random places, and every place of the last line, which holds the checksum itself.
    places = [*rng.integers(8 * len(file), size=250), *range(8 * (len(file) - 130), 8 * len(file))]
    for place in map(int, places):
        changed = bytearray(file)
        changed[place // 8] ^= 1 << place % 8
        damaged(tmp_path / "result.nc", bytes(changed))


def test_truncated_files(file: bytes, tmp_path: Path) -> None:
    lengths = [*np.random.default_rng(1).integers(len(file), size=40), 0, 1, len(file) - 1, len(file) - 130]
    for length in map(int, lengths):
        damaged(tmp_path / "result.nc", file[:length])


@pytest.mark.parametrize("kind", ["zeros", "half", "page", "doubled", "swapped", "longer", "another's end"])
def test_larger_damage(file: bytes, result: xr.Dataset, tmp_path: Path, kind: str) -> None:
    half, page = len(file) // 2, 4096
    other = save(result.assign_attrs(task="another"), tmp_path / "other.nc").read_bytes()
    content = {
        "zeros": bytes(len(file)),
        "half": file[:half] + bytes(len(file) - half),
        "page": file[:page] + bytes(page) + file[2 * page :],
        "doubled": file[:half] + file[half:] * 2,
        "swapped": file[page : 2 * page] + file[:page] + file[2 * page :],
        "longer": file + b"\0",
        "another's end": file[:half] + other[half:],
    }[kind]
    assert content != file
    damaged(tmp_path / "result.nc", content)


def sealed(content: bytes) -> bytes:
    """With a checksum that is right, as one who wants to could write it."""
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    return content + f"\ngenmeasures result, blake2b of all before this line: {digest}\n".encode()


def netcdf(ds: xr.Dataset) -> bytes:
    return bytes(ds.to_netcdf(engine="h5netcdf"))


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "with schema version 2, got 3: measure again"),
        ({"schema_version": "2"}, "with schema version 2, got '2'"),
        ({}, "got None"),
        ({"schema_version": 2, "hparams": "{"}, "hparams must be a JSON list of names: Expecting"),
        ({"schema_version": 2, "hparams": '{"a": 1}'}, "hparams must be a JSON list of names, got "),
        ({"schema_version": 2, "settings": "a: [b"}, "settings must be a YAML mapping: while parsing"),
        ({"schema_version": 2, "settings": "- a"}, "settings must be a YAML mapping, got "),
        ({"schema_version": 2, "original_names": '{"absent": "a"}'}, "absent"),
        ({"schema_version": 2, "original_names": "3"}, ": ValueError: .*dictionary"),
    ],
)
def test_what_is_whole_but_no_result(tmp_path: Path, attrs: dict[str, Any], message: str) -> None:
    path = tmp_path / "result.nc"
    path.write_bytes(sealed(netcdf(xr.Dataset(coords={"model": ["a"]}, attrs=attrs))))
    with pytest.raises(ResultError, match=rf"result\.nc.*{message}"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"no netCDF", b"\x89HDF\r\n\x1a\n" + bytes(500), netcdf(xr.Dataset(attrs={"schema_version": 2}))]
)
def test_a_right_checksum_over_something_else(tmp_path: Path, content: bytes) -> None:
    damaged(tmp_path / "result.nc", sealed(content))


def test_files_without_a_checksum(result: xr.Dataset, tmp_path: Path) -> None:
    """Those of schema 1, and those that another program wrote, are refused with the remedy."""
    path = tmp_path / "result.nc"
    path.write_bytes(netcdf(xr.Dataset(coords={"model": ["a"]}, attrs={"schema_version": 1})))
    with pytest.raises(ResultError, match=r"result\.nc: it has no checksum.*schema version 1\): measure again"):
        load(path)
    save(result, path)
    with xr.open_dataset(path) as opened:
        changed = opened.load()
    changed.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ResultError, match=r"result\.nc: it has no checksum.*written by another program"):
        load(path)


def test_a_large_file_of_another_program_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "result.nc"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ResultError, match=r"result\.nc"):
        load(path)


def test_any_netcdf_reader_opens_a_result(result: xr.Dataset, tmp_path: Path) -> None:
    """What follows the data is not seen, and other programs need not know the checksum."""
    path = save(result, tmp_path / "result.nc")
    with h5py.File(path) as opened:
        np.testing.assert_array_equal(opened["toy"][:], result["toy"].values)
    with xr.open_dataset(path, decode_timedelta=False) as opened:
        np.testing.assert_array_equal(opened["toy"].values, result["toy"].values)
        assert set(opened.coords) == {name.replace("/", "%2F") for name in result.coords}


# Those who read results --------------------------------------------------------------------------------------


@pytest.fixture
def folder(one: Make, write: Make, file: bytes, tmp_path: Path) -> Path:
    """Three results of which the second has a flipped bit and the third half of its bytes."""
    metrics = {"train_accuracy": 1.0, "test_accuracy": 0.5}
    write(tmp_path / "runs" / "1.nc", one("a", metrics=metrics), one("b", [3.0, 4.0], metrics=metrics))
    changed = bytearray(file)
    changed[len(file) // 2] ^= 1
    (tmp_path / "runs" / "2.nc").write_bytes(changed)
    (tmp_path / "runs" / "3.nc").write_bytes(file[: len(file) // 2])
    return tmp_path / "runs"


def test_damaged_files_do_not_stop_collecting(folder: Path, tmp_path: Path) -> None:
    found = collect(folder, tmp_path / "merged")
    (merged,) = found.files.values()
    assert merged["model"].values.tolist() == ["a", "b"]
    for name, problem in zip(("2.nc", "3.nc"), found.problems, strict=True):
        assert problem.startswith(f"cannot read the result {folder / name}: ")
        assert problem.endswith("; left out")


def test_the_command_names_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"cannot read the result {folder / '2.nc'}: its checksum is wrong" in out
    assert f"cannot read the result {folder / '3.nc'}: it has no checksum" in out
    assert f"{folder / 'collected'}" in out


def test_nothing_but_damaged_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "1.nc").unlink()
    assert main(["collect", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out.count("left out") == 2
    assert said.err == f"error: there is no result that can be read in {folder}\n"


def test_what_cannot_be_merged_does_not_stop_the_rest(folder: Path, one: Make, write: Make) -> None:
    """A file that somebody made by hand, with a checksum that is right."""
    write(folder / "4.nc", one("c"), settings="seed: 1\n")
    write(folder / "5.nc", one("d"), settings="seed: 1\n", seconds="long")
    found = collect(folder, folder / "merged")
    assert [ds["model"].values.tolist() for ds in found.files.values()] == [["a", "b"]]
    assert found.problems[-1].startswith(f"cannot merge {folder / '4.nc'}, {folder / '5.nc'}: ")
