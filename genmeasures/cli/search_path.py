"""Where Hydra finds configs: the core's, those of plugins, derived ones, and conf/ of the working folder."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

from genmeasures.errors import OptionError
from genmeasures.registry import derived_config, has_yaml, registry
from genmeasures.registry.kinds import KINDS

CONFIGS = "genmeasures.conf"
"""Package of the core's configs."""
_PROVIDER = "genmeasures"


class SearchPath(SearchPathPlugin):
    """Adds the configs of plugins, and conf/ of the working folder with its experiments."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder = Path.cwd() / "conf"
        if folder.is_dir():
            # Before the core's, so that a recipe of the user with the same name takes precedence.
            search_path.prepend("working-folder", f"file://{folder}", "main")
        for package in registry().config_packages():
            if package != CONFIGS:
                search_path.append("genmeasures-plugin", f"pkg://{package}")
        store_derived(folder)


def store_derived(folder: Path) -> None:
    """Put the configs of all components without a YAML file into Hydra's ConfigStore.

    Args:
        folder: conf/ of the working folder, whose YAML files count, too. Hydra takes a stored config with the name of
            a file for the schema of that file, so that none is stored in this case.

    Example:
        >>> store_derived(Path("conf"))
    """
    store = ConfigStore.instance()
    for kind in KINDS:
        nodes = store.repo.get(kind, {})
        for name in [key for key, node in nodes.items() if isinstance(node, ConfigNode) and node.provider == _PROVIDER]:
            del nodes[name]  # of a registry before this one
    packages = registry().config_packages()
    for info in registry().plugins:
        for kind, component in info.components:
            if has_yaml(component, packages) or (folder / kind / f"{component.name}.yaml").is_file():
                continue
            try:
                config = derived_config(component)
            except OptionError:
                continue  # reported when the component is selected
            package = f"measure.{component.name}" if kind == "measure" else None
            store.store(component.name, config, group=kind, package=package, provider=_PROVIDER)
