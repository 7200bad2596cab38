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
import zipfile
from pathlib import Path
from typing import cast

import pytest
import xarray as xr

from genmeasures.plugin import Measure
from genmeasures.registry import registry

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
BY_PLUGIN = {
    "genmeasures": ["davies_bouldin", "roughness", "confidence"],
    "genmeasures-ars": ["ars", "class_selectivity", "cumulative_ablation"],
    "genmeasures-geometry": [
        "neural_collapse",
        "silhouette",
        "feature_spectrum",
        "intrinsic_dimension",
        "transferability",
        "class_separation",
        "split_shift",
    ],
    "genmeasures-jacobian": ["jacobian_norm", "layer_jacobian", "reinitialization"],
    "genmeasures-outputs": ["output_margin", "output_confidence", "calibration", "output_distribution"],
    "genmeasures-transitions": ["transition_count", "region_count"],
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


class Borrowing:
    """A fresh virtual environment, which borrows dependencies from the one that runs the tests, and an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "empty"
        self.work.mkdir()
        venv.create(folder / "fresh", with_pip=False)
        self.bin = folder / "fresh" / "bin"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "fresh")}))

    def run(self, *command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"COLUMNS": "200", "GENMEASURES_PLUGINS": ""}  # the plugins here are not of that environment
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        self.run(*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel))
        (self.packages / "zz_borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def genmeasures(self, *command: str) -> str:
        return self.run(str(self.bin / "genmeasures"), *command)


def wheel_of(source: Path, folder: Path) -> Path:
    """The wheel of a source tree or archive."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def built(target: str, folder: Path) -> Path:
    """What hatchling builds of the repository: "sdist", or "wheel:editable" as pip does for an editable install."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (archive,) = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
    return archive


def test_the_wheel_of_the_core_works_by_itself(tmp_path: Path) -> None:
    fresh = Borrowing(tmp_path)
    fresh.install(wheel_of(ROOT, tmp_path))
    python = str(fresh.bin / "python")
    assert fresh.run(python, "-c", "import genmeasures; print(genmeasures.__file__)").startswith(str(fresh.packages))
    listed = [line for line in fresh.genmeasures("plugins").splitlines() if line[0] != " "]
    assert listed == ["genmeasures  genmeasures 0.1.0"]
    out = fresh.genmeasures("run", "task.limit=1", "task.cache=cache", "extractor.cap=200", "figures=true")
    assert "result: results/" in out
    (path,) = (fresh.work / "results").glob("*.nc")
    ds = xr.load_dataset(path, engine="h5netcdf")
    assert ds["model_status"].values.tolist() == ["ok"]
    assert ds["roughness"].notnull().all()
    assert path.with_suffix(".png").is_file()
    assert "limit: 12" in fresh.genmeasures("run", "experiment=quick", "--cfg", "job")  # a recipe that it brings along
    assert fresh.run(python, "-m", "genmeasures", "--version") == "genmeasures 0.1.0\n"
    fresh.genmeasures("new-plugin", "my_measure")  # from a template that the wheel brings along
    assert (fresh.work / "genmeasures-my-measure" / "pyproject.toml").is_file()


def test_an_editable_install_offers_the_same_configs(tmp_path: Path) -> None:
    fresh = Borrowing(tmp_path)
    fresh.install(built("wheel:editable", tmp_path))
    python = str(fresh.bin / "python")
    assert fresh.run(python, "-c", "import genmeasures; print(genmeasures.__file__)").startswith(str(ROOT))
    assert "limit: 12" in fresh.genmeasures("run", "experiment=quick", "--cfg", "job")
    listing = "import importlib.resources as r; print(*sorted(p.name for p in r.files('genmeasures.conf').iterdir()))"
    groups = [name for name in fresh.run(python, "-c", listing).split() if not name.startswith("__")]
    assert groups == ["aggregator", "experiment", "extractor", "labeler", "measure", "run.yaml", "task"]
    fresh.genmeasures("new-plugin", "my_measure")
    assert (fresh.work / "genmeasures-my-measure" / "pyproject.toml").is_file()


def test_the_sdist_has_all_that_the_wheel_needs(tmp_path: Path) -> None:
    contents = []
    for source in (ROOT, built("sdist", tmp_path / "sdist")):
        (tmp_path / source.name).mkdir()
        with zipfile.ZipFile(wheel_of(source, tmp_path / source.name)) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist() if "dist-info" not in name})
    assert contents[0] == contents[1]
    assert "genmeasures/conf/experiment/quick.yaml" in contents[1]


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
        variables = {name: cast(type[Measure], registry().get("measure", name)).variables for name in everything}
        valued = {name: any(ds[one.name].notnull().any() for one in variables[name]) for name in everything}
        assert [name for name in everything if not valued[name]] == []

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
