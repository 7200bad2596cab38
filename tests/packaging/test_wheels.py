"""As a user gets it: wheels in an environment made for them, a multirun from an empty folder, plugins that come and go.

The tests marked as slow need pip's index and some five minutes, and are therefore run by hand:
``pytest -m slow tests/packaging``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import xarray as xr

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
BY_PLUGIN = {
    "genmeasures": ["davies_bouldin", "roughness", "confidence"],
    "genmeasures-ars": ["ars", "class_selectivity", "cumulative_ablation"],
    "genmeasures-jacobian": ["jacobian_norm", "layer_jacobian"],
    "genmeasures-transitions": ["transition_count"],
}
MODELS = 2


class Environment:
    """A fresh virtual environment, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)

    def run(self, *command: str, fails: bool = False) -> str:
        """What a command of the environment prints."""
        path = self.folder / "env" / "bin" / command[0]
        done = subprocess.run([str(path), *command[1:]], cwd=self.work, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(self, *what: str) -> None:
        self.run("pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), *what)

    def measures(self, output: str, names: list[str], *options: str) -> list[xr.Dataset]:
        """The results of a multirun of these measures over both extractors, in a folder of their own."""
        given = [f"measure=[{','.join(names)}]", f"output={output}", f"task.limit={MODELS}", "task.cache=../cache"]
        self.run("genmeasures", "run", "--multirun", "extractor=receptive_field,whole_tensor", *given, *options)
        made = [xr.load_dataset(path, engine="h5netcdf") for path in (self.work / output).glob("*.nc")]
        return sorted(made, key=lambda ds: str(ds.attrs["extractor"]))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("fresh")
    made = Environment(folder)
    made.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT), *map(str, PLUGINS))
    (core,) = folder.glob("genmeasures-*.whl")
    made.install(str(core))
    return made


def test_the_wheel_of_the_core_works_by_itself(tmp_path: Path) -> None:
    """Installed into an environment of its own, which borrows what it depends on from the one that runs the tests."""
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"COLUMNS": "200", "GENMEASURES_PLUGINS": ""}  # the plugins here are not of that environment

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    empty = tmp_path / "empty"
    empty.mkdir()
    run(*pip, "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("genmeasures-*.whl")
    venv.create(tmp_path / "fresh", with_pip=False)
    python = str(tmp_path / "fresh" / "bin" / "python")
    run(*pip, "--python", python, "install", *quiet, str(wheel))
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "fresh")}))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    assert run(python, "-c", "import genmeasures; print(genmeasures.__file__)").startswith(str(packages))
    command = str(tmp_path / "fresh" / "bin" / "genmeasures")
    listed = [line for line in run(command, "plugins").splitlines() if line[0] != " "]
    assert listed == ["genmeasures  genmeasures 0.1.0"]
    out = run(command, "run", "task.limit=1", "task.cache=cache", "extractor.cap=200", "figures=true")
    assert "result: results/" in out
    (path,) = (empty / "results").glob("*.nc")
    ds = xr.load_dataset(path, engine="h5netcdf")
    assert ds["model_status"].values.tolist() == ["ok"]
    assert ds["roughness"].notnull().all()
    assert path.with_suffix(".png").is_file()
    assert "limit: 12" in run(command, "run", "experiment=quick", "--cfg", "job")  # a recipe that it brings along
    assert run(python, "-m", "genmeasures", "--version") == "genmeasures 0.1.0\n"
    run(command, "new-plugin", "my_measure")  # from a template that the wheel brings along
    assert (empty / "genmeasures-my-measure" / "pyproject.toml").is_file()


@pytest.mark.slow
def test_wheels_come_and_go(environment: Environment) -> None:
    assert [line for line in environment.run("genmeasures", "plugins").splitlines() if line[0] != " "] == [
        "genmeasures  genmeasures 0.1.0"
    ]
    for plugin in PLUGINS:
        (wheel,) = environment.folder.glob(f"{plugin.name.replace('-', '_')}-*.whl")
        environment.install(str(wheel))
    everything = [name for names in BY_PLUGIN.values() for name in names]
    results = environment.measures("all", everything)
    assert len({ds.attrs["extractor"] for ds in results}) == 2
    for ds in results:
        assert ds.sizes["model"] == MODELS
        assert (ds["model_status"] == "ok").all()
        assert [name for name in everything if not ds[name].notnull().any()] == []

    environment.run("pip", "uninstall", "--yes", "--quiet", "genmeasures-jacobian")
    assert "jacobian" not in environment.run("genmeasures", "plugins")
    rest = [name for name in everything if name not in BY_PLUGIN["genmeasures-jacobian"]]
    for before, after in zip(results, environment.measures("rest", rest), strict=True):
        names = [name for name in before.data_vars if name in after]
        # Of other measures, so that their keys differ.
        xr.testing.assert_equal(before[names].drop_vars("model_key"), after[names].drop_vars("model_key"))
    assert "jacobian_norm" in environment.run("genmeasures", "run", "measure=[jacobian_norm]", fails=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_plugin_made_by_the_command(environment: Environment, launcher: str) -> None:
    """Editable, as its author installs it: its config is found in every process that a launcher starts."""
    name = f"dead_{launcher}"
    environment.run("genmeasures", "new-plugin", name)
    environment.install("--editable", f"./genmeasures-{name.replace('_', '-')}")
    environment.install(f"hydra-{launcher.split('_')[0]}-launcher")
    results = environment.measures(launcher, ["roughness", name], f"hydra/launcher={launcher}")
    assert len(results) == 2
    for ds in results:
        assert ds[name].notnull().all()
    environment.run("pip", "uninstall", "--yes", "--quiet", f"genmeasures-{name.replace('_', '-')}")
    assert name not in environment.run("genmeasures", "plugins")
