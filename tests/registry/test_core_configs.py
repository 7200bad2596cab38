"""The core's YAML files, which Hydra users read and copy, agree with the code.

``python tests/registry/test_core_configs.py`` writes the files from signatures and docstrings.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import genmeasures
from genmeasures.interfaces import Component
from genmeasures.registry import derived_config, kind_of, options_of, registry

CONF = Path(genmeasures.__file__).parent / "conf"
USE = "# Use: +labeler@measure.davies_bouldin.labeler="
CHOICE = "measure.{0}.labeler.k sets its options; labeler@measure.{0}.labeler=NAME takes another"


def core() -> list[type[Component]]:
    """The components of the core."""
    return [component for _, component in registry().plugins[0].components]


def file_of(component: type[Component]) -> Path:
    return CONF / kind_of(component) / f"{component.name}.yaml"


def first_sentence(text: str) -> str:
    """As a comment of YAML, where None is null."""
    sentence = re.sub('[`"]', "", text.partition(". ")[0].removesuffix("."))
    return re.sub(r"\bNone\b", "null", sentence)


def expected(component: type[Component]) -> str:
    """The text of the file: a line for each option, with its default and what the docstring says of it."""
    kind, config = kind_of(component), derived_config(component)
    lines = [f"# @package measure.{component.name}"] if kind == "measure" else []
    if kind != "measure":
        lines.append(f"# {inspect.cleandoc(component.__doc__ or '').splitlines()[0]}")
    if kind == "labeler":
        lines.append(USE + component.name)
    if isinstance(config.get("labeler"), dict):
        labeler = config["defaults"][0]["/labeler@labeler"]
        choice = f"  - /labeler@labeler: {labeler} # {CHOICE.format(component.name)}"
        lines += ["defaults:", choice, "  - _self_"]
    lines.append(f"_target_: {config['_target_']}")
    for option in options_of(component):
        if option.name == "labeler" and isinstance(option.default, dict):
            continue  # chosen in the defaults list
        value = yaml.safe_dump(option.default, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
        value = "???" if option.default == "???" else value
        lines.append(f"{option.name}: {value} # {first_sentence(option.text)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("component", core(), ids=lambda component: component.name)
def test_a_file_says_what_the_code_says(component: type[Component]) -> None:
    assert file_of(component).read_text(encoding="utf-8") == expected(component), f"run python {__file__}"


@pytest.mark.parametrize("component", core(), ids=lambda component: component.name)
def test_every_option_is_described(component: type[Component]) -> None:
    assert [option.name for option in options_of(component) if not option.text] == []


def test_every_file_is_that_of_a_component() -> None:
    groups = ("aggregator", "extractor", "labeler", "measure", "task")
    files = {path for group in groups for path in (CONF / group).glob("*.yaml")}
    assert files == {file_of(component) for component in core()}


def test_defaults_are_those_of_the_signatures() -> None:
    """Read without the code that derives configs."""
    for component in core():
        config: dict[str, Any] = yaml.safe_load(file_of(component).read_text(encoding="utf-8"))
        for name, parameter in inspect.signature(component).parameters.items():
            if name == "labeler" and "defaults" in config:
                continue
            default = "???" if parameter.default is parameter.empty else parameter.default
            assert config[name] == (list(default) if isinstance(default, tuple) else default), (component, name)


if __name__ == "__main__":
    for component in core():
        file_of(component).write_text(expected(component), encoding="utf-8")
