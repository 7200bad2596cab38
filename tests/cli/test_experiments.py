"""Every recipe composes with the packaged configuration."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from genmeasures.cli.search_path import SearchPath
from genmeasures.registry import registry

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "genmeasures" / "conf"
RECIPES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("place", ["repository", "elsewhere"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_compose(recipe: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT if place == "repository" else tmp_path)
    Plugins.instance().register(SearchPath)
    with initialize_config_module("genmeasures.conf", version_base="1.3"):
        config = compose("run", [f"experiment={recipe}"], return_hydra_config=True)
    assert config.measure


def test_a_recipe_of_the_users_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "quick.yaml").write_text("# @package _global_\nseed: 5\n")
    Plugins.instance().register(SearchPath)
    with initialize_config_module("genmeasures.conf", version_base="1.3"):
        config = compose("run", ["experiment=quick"])
    assert config.seed == 5
    assert config.task.limit is None


@pytest.mark.parametrize("kind", ["extractor", "labeler", "measure", "aggregator", "task"])
def test_every_component_has_a_config_with_all_its_options_and_defaults(kind: str) -> None:
    """Of the core: plugins bring their own, which the conformance suite checks."""
    core = {component.name: component for of, component in registry().plugins[0].components if of == kind}
    assert {path.stem for path in (CONF / kind).glob("*.yaml")} == set(core)
    for name, component in core.items():
        node = OmegaConf.load(CONF / kind / f"{name}.yaml")
        assert node["_target_"] == f"{component.__module__.rsplit('.', 1)[0]}.{component.__qualname__}"
        chosen = {"labeler"} if "defaults" in node else set()  # a choice of its own
        assert {str(key) for key in node} - {"_target_", "defaults"} == set(component.option_names()) - chosen, name
