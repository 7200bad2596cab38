"""Messages for errors of the command line: one line with the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from genmeasures.cli.search_path import CONFIGS
from genmeasures.errors import GenmeasuresError, OptionError, nearest, one_line
from genmeasures.registry import KINDS, derived_config, registry

_ALL = "'genmeasures run --cfg job' shows all settings"
_GROUPS = ("task", "extractor", "measure", "aggregator", "experiment")
_KEY = r"'?(?P<key>[^'\s]+?)'?"


def message_for(error: Exception, overrides: Sequence[str]) -> str | None:
    """Return the message for an error of the user, or None for an internal error, whose traceback is needed.

    Args:
        error: Exception that a run raised.
        overrides: Arguments of Hydra.

    Returns:
        One line that begins with "error: ".

    Example:
        >>> message_for(GenmeasuresError("there are no models to measure"), [])
        'error: there are no models to measure'
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group:
            return "error: " + one_line(_missing(group, name))
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        file = f"{error.filename}: " if error.filename else ""
        return f"error: {file}{error.strerror or error}; choose another output folder, output=…"
    if not isinstance(error, GenmeasuresError | HydraException | OmegaConfBaseException | yaml.YAMLError):
        return None
    message = str(error).partition("\nConfig search path:")[0]
    if isinstance(error.__cause__, OmegaConfBaseException):
        message += f": {error.__cause__}"
    return "error: " + one_line(_remedy(error, message, overrides) or message.removeprefix("error: "))


def _missing(group: str, name: str) -> str:
    with initialize_config_module(CONFIGS, version_base="1.3"):
        options = GlobalHydra.instance().config_loader().get_group_options(group)
    if group in KINDS and name in registry().names(group):
        try:
            derived_config(registry().get(group, name))
        except OptionError as error:
            return f"the {group} {name!r} is installed, but has no config: {error}"
    message = registry().missing(group, name, options)
    if group == "measure":
        message += "; 'genmeasures plugins' shows what is installed, and measure=[…] chooses among it"
    return message


def _remedy(error: Exception, message: str, overrides: Sequence[str]) -> str | None:
    """The message that replaces that of Hydra, or None to keep it."""
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    for cause in (error, error.__cause__):
        if isinstance(cause, InterpolationKeyError | InterpolationResolutionError):
            return _interpolation(cause, overrides)
    for pattern, answer in _ANSWERS.items():
        match = re.match(pattern, message)
        if match:
            key = match["key"]
            typed = next((override for override in overrides if override.lstrip("+~").partition("=")[0] == key), key)
            return answer(key, typed, overrides)
    return None


def _unreadable(error: OverrideParseException) -> str:
    typed = error.override
    if "missing EQUAL" in error.message:
        return f"{typed}: a setting must be of the form KEY=VALUE, without spaces around the equals sign"
    return (
        f"{typed}: this cannot be parsed: a text with special characters needs quotes within those of the "
        f"shell, \"KEY='VALUE'\""
    )


def _interpolation(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    key = str(getattr(error, "full_key", None) or getattr(error, "key", None) or "")
    what = str(getattr(error, "msg", None) or error).splitlines()[0]
    named = re.search(r"Interpolation key '([^']+)' not found", what)
    typed = next(
        (override for override in overrides if "${" in override and (override.partition("=")[0] == key or not named)),
        "",
    )
    variable = re.search(r"Environment variable '([^']+)' not found", what)
    if variable is not None and not typed:
        reading = [name for name, value in _settings(overrides).items() if f"oc.env:{variable[1]}" in str(value)]
        key = max(reading, key=len, default=key)  # the others are the groups that it is in
        return f"{key}: set the environment variable {variable[1]}, or {key}=…"
    if named is None:
        return f"{typed or key}: {what}"
    typed = typed or next((override for override in overrides if "${" + named[1] in override), key)
    close = _alike(named[1], _settings(overrides))
    hint = f" (did you mean ${{{close[0]}}}?)" if close else ""
    return f"{typed}: ${{{named[1]}}} refers to a setting that does not exist{hint}; {_ALL}"


def _unknown(key: str, typed: str, overrides: Sequence[str]) -> str:
    if "@" in key:
        return _no_group(key, typed, overrides)
    settings = _settings(overrides)
    if typed.startswith("~") and key in settings:
        return f"{typed}: a run needs this setting: give it a value instead"
    parent = key.rpartition(".")[0]
    words = key.split(".")
    chosen = list(dict.fromkeys(name.split(".")[1] for name in settings if name.startswith("measure.")))
    close = _alike(key, settings)
    if not close and words[0] == "measure" and len(words) > 2 and chosen and words[1] not in chosen:
        measures = ",".join([*chosen, words[1]])
        return f"{typed}: {words[1]!r} is not among the measures of this run: choose it too, measure=[{measures}]"
    if parent in settings and settings[parent] is None:
        group = parent.rpartition(".")[2]
        return f"{typed}: {parent} is null and has no settings: choose one first, +{group}@{parent}=NAME"
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{typed}: there is no setting {key!r}{hint}; {_ALL}"


def _no_group(key: str, typed: str, overrides: Sequence[str]) -> str:
    if "@" in key:
        words = key.partition("@")[2].split(".")
        chosen = {name.split(".")[1] for name in _settings(overrides) if name.startswith("measure.")}
        if words[0] == "measure" and len(words) > 2 and words[1] not in chosen:
            return f"{typed}: {words[1]!r} is not among the measures of this run{nearest(words[1], chosen)}"
        return f"{typed}: there is no such choice yet: to add it, prefix it with a plus sign, +{typed.lstrip('+~')}"
    return _unknown(key, typed, overrides)


def _there(key: str, typed: str, overrides: Sequence[str]) -> str:
    value = typed.lstrip("+").partition("=")[2]
    return f"{typed}: {key!r} exists already: leave out the plus sign, {key}={value}"


def _not_there(key: str, typed: str, overrides: Sequence[str]) -> str:
    close = _alike(key, _settings(overrides))
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{typed}: there is no setting {key!r} to remove{hint}; {_ALL}"


def _ambiguous(key: str, typed: str, overrides: Sequence[str]) -> str:
    value = typed.partition("=")[2]
    return (
        f"{typed}: several values: add -m to have a run for each, write a list as {key}=[{value}], or a text as "
        f"\"{key}='{value}'\""
    )


_ANSWERS: dict[str, Callable[[str, str, Sequence[str]], str]] = {
    rf"Could not override {_KEY}\.\s+No match in the defaults list": _no_group,
    rf"Could not override {_KEY}\.\s": _unknown,
    rf"Could not append to config\. An item is already at {_KEY}\.\s": _there,
    rf"Multiple values for {_KEY}\.\s": _there,
    rf"Could not delete from config\. {_KEY} does": _not_there,
    rf"Could not delete {_KEY}\. ": _not_there,
    r"Ambiguous value for argument '(?P<key>[^=]+)=": _ambiguous,
    rf"Key {_KEY} is not in struct": _unknown,
}
"""Messages of Hydra 1.3, and what replaces them."""


def _alike(key: str, settings: Any) -> list[str]:
    """Settings that may be meant: deeper ones with the same last word, or with a similar name."""
    parent, _, last = key.rpartition(".")
    deeper = [name for name in settings if parent and name.startswith(f"{parent}.") and name.endswith(f".{last}")]
    close = difflib.get_close_matches(
        key, [setting for setting in settings if not key.startswith(f"{setting}.")], n=1, cutoff=0.7
    )
    return sorted(deeper, key=len) or close


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted names and values of the settings for the choices of this command line, or else for the defaults."""
    chosen = [
        override for override in overrides if override.partition("=")[0] in _GROUPS or "@" in override.partition("=")[0]
    ]
    for choices in (chosen, []):
        try:
            with initialize_config_module(CONFIGS, version_base="1.3"):
                return dict(
                    flat(OmegaConf.to_container(compose("run", choices), resolve=False, throw_on_missing=False))
                )
        except Exception:  # the choices themselves may be wrong, or several for a sweep
            continue
    return {}


def flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return all settings of a nested mapping under dotted names, including the mappings themselves.

    Args:
        node: the mapping; anything else has no settings.
        prefix: put before every name.

    Example:
        >>> flat({"task": {"limit": 8}})
        [('task', {'limit': 8}), ('task.limit', 8)]
    """
    settings = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        settings.append((name, value))
        if isinstance(value, dict):
            settings += flat(value, f"{name}.")
    return settings


def unread(config: DictConfig, settings: Sequence[str]) -> str | None:
    """Return a message for a setting that is not used, or None.

    A setting of the user that others refer to, as ``${width}``, is used.

    Args:
        config: the composed configuration.
        settings: names of the settings that a run reads.

    Example:
        >>> unread(OmegaConf.create({"seed": 1, "sead": 2}), ["seed"])
        "sead: unknown setting, which nothing reads (did you mean 'seed'? known: seed)"
    """
    text = OmegaConf.to_yaml(config, resolve=False)
    for key in map(str, config):
        if key not in settings and not re.search(rf"\$\{{\.*{re.escape(key)}\b", text):
            return f"{key}: unknown setting, which nothing reads{nearest(key, settings)}"
    return None
