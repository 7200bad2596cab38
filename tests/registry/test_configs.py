"""Configs derived from constructors, and the core's YAML files, which agree with them and with the docstrings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from genmeasures.cli.main import main
from genmeasures.cli.search_path import SearchPath
from genmeasures.errors import OptionError
from genmeasures.interfaces import Aggregator
from genmeasures.registry import derived_config, options_of, registry
from genmeasures.testing import run_checks

OWN = '''
from genmeasures.labelers import KMeans
from genmeasures.plugin import Aggregator, FeatureMeasure, Pass, Variable, hookimpl


class Clusters(FeatureMeasure):
    """Number of clusters.

    Args:
        labeler: What clusters the vectors. None takes the one
            that fits the targets.
        factor (float): Multiplies the number.
    """

    name = "clusters"
    variables = (Variable("clusters", "number of clusters"),)
    passes = (Pass("test", "vectors", "labels"),)

    def __init__(self, labeler=None, factor=1.0):
        self.labeler = labeler
        self.factor = factor

    def start(self, layer, generator):
        self._seen = set()

    def update(self, batch):
        self._seen |= set(batch.labels(self.labeler).tolist())

    def compute(self):
        return self.factor * len(self._seen)


class OfClusters(Clusters):
    """Number of clusters of k-means."""

    name = "of_clusters"
    variables = (Variable("of_clusters", "number of clusters"),)

    def __init__(self, labeler=None):
        super().__init__(KMeans(k=3) if labeler is None else labeler)


class Quantile(Aggregator):
    """Quantile over layers."""

    name = "quantile"

    def __init__(self, share, axis=(1, 2), table={"a": [1]}):
        self.share, self.axis, self.table = share, axis, table

    def reduce(self, values, weight_norms, layer_names):
        raise NotImplementedError


@hookimpl
def genmeasures_register(register):
    register(Clusters)
    register(OfClusters)
    register(Quantile)
'''


@pytest.fixture
def own(install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plugin of one module, without any YAML file, and an empty working folder; returns the name of the module."""
    install(own=OWN)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Plugins.instance().register(SearchPath)
    return registry().get("measure", "clusters").__module__


def composed(*overrides: str) -> Any:
    with initialize_config_module("genmeasures.conf", version_base="1.3"):
        return OmegaConf.to_container(compose("run", list(overrides)), throw_on_missing=False)


def test_a_config_is_derived_from_the_constructor(own: str) -> None:
    assert composed("measure=[clusters]")["measure"] == {
        "clusters": {"_target_": f"{own}.Clusters", "labeler": None, "factor": 1.0}
    }
    assert composed("aggregator=quantile")["aggregator"] == {
        "_target_": f"{own}.Quantile", "share": "???", "axis": [1, 2], "table": {"a": [1]},
    }  # fmt: skip


def test_a_labeler_is_a_choice(own: str) -> None:
    chosen = composed("measure=[clusters]", "labeler@measure.clusters.labeler=kmeans", "measure.clusters.labeler.k=7")
    labeler = {"_target_": "genmeasures.labelers.KMeans", "k": 7, "restarts": 10, "repeats": 1}
    assert chosen["measure"]["clusters"] == {"_target_": f"{own}.Clusters", "labeler": labeler, "factor": 1.0}
    default = composed("measure=[of_clusters]")["measure"]["of_clusters"]
    assert default == {"_target_": f"{own}.OfClusters", "labeler": {**labeler, "k": 3}}
    other = composed("measure=[of_clusters]", "labeler@measure.of_clusters.labeler=histogram")
    assert other["measure"]["of_clusters"]["labeler"]["_target_"] == "genmeasures.labelers.Histogram"


def test_yaml_takes_precedence(own: str) -> None:
    """Of a plugin, or of the working folder: then no config is derived."""
    file = Path("conf/measure/clusters.yaml")
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package measure.clusters\n_target_: {own}.Clusters\nfactor: 3.0\n")
    assert composed("measure=[clusters]")["measure"] == {"clusters": {"_target_": f"{own}.Clusters", "factor": 3.0}}
    file.unlink()
    assert composed("measure=[clusters]")["measure"]["clusters"]["factor"] == 1.0


def test_a_plugin_of_one_module_runs(own: str, capfd: pytest.CaptureFixture[str]) -> None:
    """With an override, in a multirun, and with what is wrong named."""
    few = [
        "measure=[clusters]",
        "task.limit=1",
        "extractor.cap=100",
        "figures=false",
        "labeler@measure.clusters.labeler=kmeans",
    ]
    assert main(["run", *few, "measure.clusters.labeler.k=2,4", "measure.clusters.factor=10", "-m"]) == 0
    results = [xr.load_dataset(path, engine="h5netcdf") for path in Path("results").glob("*.nc")]
    assert sorted(float(ds.clusters[0, 0]) for ds in results) == [20, 40]
    capfd.readouterr()
    for override, message in (
        ("measure.clusters.fctor=2", "there is no setting 'measure.clusters.fctor' (did you mean 'measure.clusters"),
        ("measure=[clusterz]", "there is no measure 'clusterz' (did you mean 'clusters'? known: clusters, "),
        ("aggregator=quantile", "aggregator.share: a value is needed, aggregator.share=…"),
    ):  # fmt: skip
        assert main(["run", *few, override]) == 1
        assert message in capfd.readouterr().err


def test_derived_configs_do_not_outlive_the_plugin(own: str, install: Callable[..., None]) -> None:
    assert composed("measure=[clusters]")
    install.points.clear()  # type: ignore[attr-defined]
    registry.cache_clear()
    with pytest.raises(Exception, match="Could not load 'measure/clusters'"):
        composed("measure=[clusters]")


def test_descriptions_of_options(own: str) -> None:
    options = {option.name: option for option in options_of(registry().get("measure", "clusters"))}
    assert options["labeler"].text == "What clusters the vectors. None takes the one that fits the targets."
    assert options["factor"].text == "Multiplies the number."
    assert options["factor"].default == 1.0


class Odd(Aggregator):
    """Its default has no form in YAML."""

    name = "odd"

    def __init__(self, key: object = np.mean) -> None:
        self.key = key

    def reduce(self, values: Any, weight_norms: Any, layer_names: Any) -> Any:
        raise NotImplementedError


def test_a_default_that_yaml_cannot_express_is_named(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=r"Odd: the default of 'key' is <function mean.*write a YAML file"):
        derived_config(Odd)
    install(odd=OWN.replace("factor=1.0", "factor=KMeans"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "measure=[clusters]"]) == 1
    message = "the measure 'clusters' is installed, but has no config: Clusters: the default of 'factor' is"
    assert message in capsys.readouterr().err


def test_the_conformance_suite_tries_the_derived_config(own: str) -> None:
    checks = {check.name: check for check in run_checks(registry().make("measure", "of_clusters", {}))}
    assert (checks["config"].status, checks["config"].message) == ("passed", "")
