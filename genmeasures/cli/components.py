"""Components from the configuration of a command."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from genmeasures.errors import GenmeasuresError, OptionError, nearest
from genmeasures.interfaces import Component


def make_component(config: DictConfig, key: str, base: type[Any], prefix: str = "") -> Any:
    """Make the component of a part of a configuration; the names of its options are checked first.

    Args:
        config: the configuration.
        key: name of the part.
        base: interface of the component.
        prefix: what comes before the key in messages.

    Raises:
        OptionError: nothing is configured, or the component or one of its options is wrong.

    Example:
        >>> from genmeasures.interfaces import Extractor
        >>> config = OmegaConf.create({"extractor": {"_target_": "genmeasures.extractors.ReceptiveField", "cap": 9}})
        >>> make_component(config, "extractor", Extractor).cap
        9
    """
    node = config.get(key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise OptionError(
            f"{prefix}{key}: no component is configured: a config has _target_, and one of a measure begins with the "
            "line '# @package measure.NAME'"
        )
    try:
        component = get_class(node["_target_"])
    except Exception as error:
        raise OptionError(f"{prefix}{key}: {node['_target_']} cannot be imported: {error}") from error
    if not issubclass(component, base):
        raise OptionError(f"{prefix}{key}: {node['_target_']} is not a subclass of {base.__name__}")
    for option in map(str, node):
        if OmegaConf.is_missing(node, option):
            raise OptionError(f"{prefix}{key}.{option}: a value is needed, {prefix}{key}.{option}=…")
    if issubclass(component, Component):
        options = component.option_names()
        for option in map(str, node):
            if option not in options and not option.startswith("_"):
                raise OptionError(f"{prefix}{key}.{option}: unknown option{nearest(option, options)}")
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, GenmeasuresError):
            raise type(cause)(f"{prefix}{key}: {cause!s}") from error
        raise OptionError(f"{prefix}{key}: {error}") from error
