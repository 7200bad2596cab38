"""Checks of components of every kind."""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import inspect
import pickle
import re
from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

import yaml
from hydra.utils import instantiate

from genmeasures import interfaces
from genmeasures.errors import ComponentError, OptionError
from genmeasures.interfaces import Component
from genmeasures.registry import KINDS, derived_config, has_yaml, registry
from genmeasures.registry.configs import REQUIRED


def check_attributes(component: Component) -> None:
    """It has the attributes that components of its kind need."""
    try:
        interfaces.check_attributes(component)
    except ComponentError as error:
        raise AssertionError(str(error)) from error


def check_name(component: Component) -> None:
    """Its name consists of lowercase letters, digits and underscores."""
    if not isinstance(getattr(component, "name", None), str):
        raise SkipTest("it has no name")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", component.name), f"name is {component.name!r}"


def check_options_are_stored(component: Component) -> None:
    """Every argument of __init__ is stored under its own name, and repr shows it."""
    for parameter in inspect.signature(type(component)).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY), (
            f"__init__ takes {parameter}: options must be named arguments, from which clones and configs are made"
        )
    for option in component.option_names():
        assert hasattr(component, option), f"__init__ takes {option!r} but does not store it as self.{option}"
        assert f"{option}=" in repr(component), f"repr does not show {option!r}: {component!r}"


def check_methods(component: Component) -> None:
    """No method has almost the name of one of the interface, which would never be called."""
    interface = {
        name: method
        for base in type(component).__mro__
        if base.__module__ == interfaces.__name__
        for name, method in vars(base).items()
        if not name.startswith("_") and callable(method)
    }
    for name in interface:
        assert callable(getattr(component, name)), f"{name} is a method of the interface: write def {name}(self, …)"
    for cls in type(component).__mro__:
        if cls.__module__.partition(".")[0] == "genmeasures":
            continue
        for name, method in vars(cls).items():
            if callable(method) and not name.startswith("_") and name not in interface:
                for close in difflib.get_close_matches(name, interface, n=1, cutoff=0.84):
                    assert getattr(type(component), close) is not interface[close], (
                        f"it has a method {name!r}, which is never called: did you mean {close!r}? Otherwise write "
                        f"'_{name}'"
                    )


def check_clone(component: Component) -> None:
    """A clone has the same options, and is another object."""
    clone = component.clone()
    assert clone is not component, "clone() returns the component itself"
    assert type(clone) is type(component), f"the clone is a {type(clone).__name__}"
    assert repr(clone) == repr(component), f"the clone is {clone!r}, the original {component!r}"


def check_copy_and_pickle(component: Component) -> None:
    """Copies, and copies through pickle, have the same options."""
    try:
        pickled = pickle.dumps(component)
    except Exception as error:  # pickle raises many types
        raise AssertionError(f"it cannot be pickled: {type(error).__name__}: {error}") from error
    for copied in (copy.deepcopy(component), pickle.loads(pickled)):
        assert repr(copied) == repr(component), f"the copy is {copied!r}, the original {component!r}"


def check_config(component: Component) -> None:
    """If it is registered, its Hydra config gives it its default options."""
    kind = next(kind for kind, base in KINDS.items() if isinstance(component, base))
    components = registry()
    name = getattr(component, "name", None)
    if name not in components.names(kind) or components.get(kind, component.name) is not type(component):
        raise SkipTest("it is not registered under its name, so it needs no config")
    packages = components.config_packages()
    settings = _yaml(component, kind, packages) if has_yaml(type(component), packages) else _derived(type(component))
    options = {key: value for key, value in settings.items() if key != "defaults" and not key.startswith("_")}
    unknown = sorted(set(options) - set(component.option_names()))
    assert not unknown, f"the config of {name} sets {', '.join(unknown)}, which the class has no options for"
    if any(value == REQUIRED for value in options.values()):
        raise SkipTest("its config has options that the user must set")
    # Choices in the defaults list, such as a labeler, are left to the class here.
    chosen = {"defaults", *(("labeler",) if "defaults" in settings else ())}
    instance = instantiate({key: value for key, value in settings.items() if key not in chosen}, _convert_="all")
    assert type(instance) is type(component), f"the config of {name} makes a {type(instance).__name__}"
    default = type(component)()
    assert repr(instance) == repr(default), (
        f"the config of {name} makes {instance!r}, expected the defaults {default!r}"
    )


def _yaml(component: Component, kind: str, packages: Sequence[str]) -> dict[str, Any]:
    """The settings of the YAML file of a component."""
    file = f"{component.name}.yaml"
    paths = [importlib.resources.files(package) / kind / file for package in packages]
    text = next(path for path in paths if path.is_file()).read_text(encoding="utf-8")
    if kind == "measure":
        header = f"# @package measure.{component.name}"
        assert text.partition("\n")[0].strip() == header, f"the first line of {file} must be {header!r}"
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def _derived(component: type[Component]) -> dict[str, Any]:
    """The config that is derived from the constructor of a component."""
    try:
        return derived_config(component)
    except OptionError as error:
        raise AssertionError(str(error)) from error


CHECKS = (
    check_attributes,
    check_name,
    check_options_are_stored,
    check_methods,
    check_clone,
    check_copy_and_pickle,
    check_config,
)
