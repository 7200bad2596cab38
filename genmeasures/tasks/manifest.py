"""The manifest of a folder of trained models: ``manifest.yaml``, read and checked without loading a model."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from genmeasures.data import check_ignore_index
from genmeasures.errors import OptionError, nearest
from genmeasures.interfaces import SPLITS, Split
from genmeasures.tasks.arrays import ArraySpec, layout_fault
from genmeasures.tasks.imports import is_dotted_path
from genmeasures.tasks.weights import SUFFIXES

Scalar: TypeAlias = float | int | str | bool

FILE = "manifest.yaml"
_SHARES = ("accuracy", "iou")
"""Metrics that lie from 0 to 1."""

_OF_A_MODEL = ("weights", "factory", "factory_kwargs", "key", "strict", "hparams")
_OF_A_ROW = ("model", "weights", "factory", "key")
"""Columns of a table that have a meaning of their own."""
_KWARGS, _HPARAMS = "factory_kwargs.", "hparams."
"""What columns of a table begin with that are arguments of the factory, and hyperparameters whatever their names."""

_METRIC_WORDS = frozenset({
    "acc", "accuracy", "accuracies", "auc", "auroc", "ap", "bleu", "cer", "wer", "dice", "iou", "miou", "f1", "jaccard",
    "error", "errors", "err", "loss", "losses", "mae", "mse", "rmse", "nll", "ppl", "perplexity", "psnr", "ssim",
    "recall", "score", "top1", "top5",
})  # fmt: skip
"""Not "precision", which is that of numbers more often."""
_SPLIT_WORDS = frozenset({
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "ood",
})  # fmt: skip


@dataclass(frozen=True)
class DatasetSpec:
    """A data set that a class or function makes."""

    target: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """How to build one model, and what is known of it."""

    name: str
    factory: str
    """Dotted path of the callable that returns the architecture."""
    factory_kwargs: Mapping[str, Any]
    weights: tuple[Path, ...]
    """The first of these files that exists has the weights. A single one is named by the manifest."""
    key: str | None
    """Name of the entry of the file that has them."""
    strict: bool
    """Whether every key of the file must be used."""
    hparams: Mapping[str, Scalar]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Manifest:
    """A checked manifest; its paths are absolute or relative to the working directory."""

    path: Path
    python_path: tuple[Path, ...]
    """Folders to search for the modules that the manifest names."""
    metric: str
    data: Mapping[Split, ArraySpec | DatasetSpec]
    ignore_index: float | None
    """The target that means "no label"."""
    models: tuple[ModelSpec, ...]


def read_manifest(path: str | Path) -> Manifest:
    """Read ``manifest.yaml`` in the folder ``path``, or the file ``path``.

    Everything that can be checked without importing or loading anything is. Raises OptionError
    naming the file and the key.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= FILE
    top = _Section(file, "", _read_yaml(file))
    top.allow("factory", "factory_kwargs", "strict", "metric", "data", "models", "python_path")
    metric = top.text("metric") or "accuracy"
    if metric.startswith(("train_", "test_")):
        top.fail("metric", f"give {metric.partition('_')[2]!r}, without {metric.partition('_')[0]}_")
    models = _models(top, metric)
    known = {name for model in models for name in model.metrics}
    if known and not known & {f"train_{metric}", f"test_{metric}"}:
        others = sorted({name.partition("_")[2] for name in known})
        write = " or ".join(f"metric: {other}" for other in others)
        top.fail(
            "metric",
            f"no model has train_{metric} or test_{metric}; they have {', '.join(sorted(known))}: write {write}, or "
            f"call them train_{metric} and test_{metric}",
        )
    data, ignore_index = _data(top)
    return Manifest(file, _python_path(top), metric, data, ignore_index, models)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses repeated keys and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789")
)


def _read_yaml(file: Path) -> object:
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        folder = file.parent
        if not folder.is_dir():
            raise OptionError(f"{file}: there is no folder {folder}") from None
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
        raise OptionError(f"{file}: there is no such file{nearest(file.name, others)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{file} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(f"{file} is not valid YAML: {error}") from error


class _Section:
    """A mapping of the manifest, which knows its place for error messages."""

    def __init__(self, file: Path, place: str, value: object) -> None:
        self.file = file
        self.place = place
        if not isinstance(value, dict):
            found = "is empty" if value is None else f"is of type {type(value).__name__}"
            raise OptionError(f"{file}: {place or 'the manifest'}: must have keys and values, but {found}")
        for key in value:
            if not isinstance(key, str):
                self.fail(str(key), f"is read as {type(key).__name__}: put the name in quotes")
        self.values: dict[str, Any] = value

    def fail(self, key: str, fault: str) -> NoReturn:
        raise OptionError(f"{self.file}: {self.path(key)}: {fault}")

    def path(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def allow(self, *known: str, prefixes: tuple[str, ...] = ()) -> None:
        for key in self.values:
            if key not in known and not (prefixes and key.startswith(prefixes)):
                self.fail(key, f"unknown key{nearest(key, [*known, *(f'{p}…' for p in prefixes)])}")

    def section(self, key: str) -> _Section:
        """A mapping within, empty where the key is absent."""
        value = self.values.get(key)
        return _Section(self.file, self.path(key), {} if value is None else value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.fail(key, f"must be text, but is {value!r}")
        return value

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        return None if value is None else self._checked_number(key, value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        value = self.values.get(key)
        if value is None:
            return None
        return tuple(self._checked_number(key, v) for v in (value if isinstance(value, list) else [value]))

    def _checked_number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(key, f"must be a finite number, but is {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, but is {value!r}")
        return value

    def target(self, key: str) -> str | None:
        value = self.text(key)
        if value is not None and not is_dotted_path(value):
            self.fail(key, f"must be a dotted path such as torchvision.models.resnet18, but is {value!r}")
        return value

    def file_path(self, key: str) -> Path | None:
        value = self.text(key)
        return None if value is None else resolve(self.file, value)


def resolve(manifest: Path, path: str) -> Path:
    """A path that is given relative to the manifest."""
    return manifest.parent / Path(path).expanduser()


def _python_path(top: _Section) -> tuple[Path, ...]:
    value = top.values.get("python_path")
    listed = [] if value is None else value if isinstance(value, list) else [value]
    folders = []
    for folder in listed:
        if not isinstance(folder, str) or not resolve(top.file, folder).is_dir():
            top.fail("python_path", f"there is no folder {folder!r}")
        folders.append(resolve(top.file, folder).resolve())
    return tuple(folders)


def _data(top: _Section) -> tuple[dict[Split, ArraySpec | DatasetSpec], float | None]:
    section = top.section("data")
    section.allow(*SPLITS, "ignore_index")
    splits = [split for split in SPLITS if split in section.values]
    ignore_index = section.values.get("ignore_index")
    try:
        check_ignore_index(ignore_index)
    except OptionError:
        section.fail("ignore_index", f"must be a number, such as 255, but is {ignore_index!r}")
    return {split: _one_data(section.section(split)) for split in splits}, ignore_index


def _one_data(section: _Section) -> ArraySpec | DatasetSpec:
    if ("_target_" in section.values) == ("npz" in section.values):
        raise OptionError(f"{section.file}: {section.place}: give either npz, a file, or _target_, a class or function")
    target = section.target("_target_")
    if target is not None:
        return DatasetSpec(target, {key: value for key, value in section.values.items() if key != "_target_"})
    section.allow("npz", "x", "y", "layout", "scale", "mean", "std")
    npz, x, layout, scale = section.file_path("npz"), section.text("x"), section.text("layout"), section.number("scale")
    if npz is None:
        section.fail("npz", "is empty: give the path of a file")
    if x is None:
        section.fail("x", "is missing: name the array with the inputs")
    if layout is not None and (fault := layout_fault(layout)):
        section.fail("layout", fault)
    if scale is not None and scale <= 0:
        section.fail("scale", f"must be above 0, but is {scale}")
    std = section.numbers("std")
    if std is not None and min(std, default=0) <= 0:
        section.fail("std", f"must be above 0, but is {section.values['std']}")
    mean = section.numbers("mean")
    return ArraySpec(npz, x, section.text("y"), layout, scale, mean, std)


def _models(top: _Section, metric: str) -> tuple[ModelSpec, ...]:
    common = _Common(top.target("factory"), top.section("factory_kwargs").values, top.flag("strict", True))
    section = top.section("models")
    if not section.values:
        top.fail("models", "is missing: give each model by name, or the table of a CSV file")
    if isinstance(section.values.get("table"), str):
        section.allow("table", "columns")
        renamed = section.section("columns").values
        for column, name in renamed.items():
            if name is not None and not isinstance(name, str):
                section.section("columns").fail(column, f"must be the name of a column, or null, but is {name!r}")
        return _table(resolve(top.file, section.values["table"]), top.file, common, renamed, metric)
    return tuple(_one_model(section.section(name), name, common, metric) for name in section.values)


@dataclass(frozen=True)
class _Common:
    """What holds for all models that do not say otherwise."""

    factory: str | None
    kwargs: Mapping[str, Any]
    strict: bool


def _one_model(section: _Section, name: str, common: _Common, metric: str) -> ModelSpec:
    for key in section.values:
        split, _, given = key.partition("_")
        if split in SPLITS and metric == "accuracy" and _words(given) == ["acc"]:
            section.fail(key, f"write {split}_accuracy, or metric: {given} at the top of the manifest")
        if key not in _OF_A_MODEL and not key.startswith(("train_", "test_")) and looks_like_metric(key):
            section.fail(key, f"looks like a metric: metrics are called train_… and test_…{_instead(key, 'write ')}")
    section.allow(*_OF_A_MODEL, prefixes=("train_", "test_"))
    factory = section.target("factory") or common.factory
    if factory is None:
        section.fail("factory", "is missing here and at the top: give the dotted path of what returns the architecture")
    hparams = section.section("hparams")
    for key, value in hparams.values.items():
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            hparams.fail(key, f"must be a finite number, text, true or false, but is {value!r}")
    metrics = {}
    for key in section.values:
        if key.startswith(("train_", "test_")) and (value := section.number(key)) is not None:
            if fault := _metric_fault(key, value):
                section.fail(key, fault)
            metrics[key] = float(value)
    return ModelSpec(
        name=name,
        factory=factory,
        factory_kwargs={**common.kwargs, **section.section("factory_kwargs").values},
        weights=_weights(section.file, name, section.text("weights")),
        key=section.text("key"),
        strict=section.flag("strict", common.strict),
        hparams=hparams.values,
        metrics=metrics,
    )


def _weights(manifest: Path, name: str, given: str | None) -> tuple[Path, ...]:
    if given is not None:
        return (resolve(manifest, given),)
    return tuple(resolve(manifest, name + suffix) for suffix in SUFFIXES)


def _metric_fault(name: str, value: float) -> str | None:
    if name.partition("_")[2] in _SHARES and not 0 <= value <= 1:
        return f"is {value:g}, but must be a share from 0 to 1"
    return None


def looks_like_metric(name: str) -> bool:
    """Whether a name is that of something measured of a trained model rather than chosen before training.

    Example:
        >>> [name for name in ("val_loss", "acc@1", "Test/F1", "loss_weight", "train_size") if looks_like_metric(name)]
        ['val_loss', 'acc@1', 'Test/F1']
    """
    words = _words(name)
    metrics = [word in _METRIC_WORDS for word in words]
    return any(metrics) and (metrics[-1] or words[0] in _SPLIT_WORDS)


def _words(name: str) -> list[str]:
    """The words of a name in small letters, without numbers that stand alone or behind one: "acc" for acc@1."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.replace("IoU", "Iou")).lower()
    found = [word if word in _METRIC_WORDS else word.rstrip("0123456789") for word in re.findall(r"[^\W_]+", spaced)]
    return [word for word in found if word]


def _instead(name: str, before: str = "") -> str:
    """What to call a metric instead, after a colon; "" where that cannot be told."""
    words = _words(name)
    split = next((word for word in words if word in ("train", "test")), None)
    rest = [word for word in words if word not in _SPLIT_WORDS]
    known = "accuracy" if {"acc", "accuracy"} & set(rest) else "_".join(rest)
    if not known or (split is None and words[0] in _SPLIT_WORDS):
        return ""
    return f": {before}{split or 'test'}_{known}"


def _table(
    file: Path, manifest: Path, common: _Common, renamed: Mapping[str, str | None], metric: str
) -> tuple[ModelSpec, ...]:
    header, rows = _read_csv(file, renamed)
    metric_columns = [column for column in header if _is_metric(column, header, metric)]
    kwargs_columns = [column for column in header if column.startswith(_KWARGS)]
    hparam_columns = [c for c in header if c not in (*_OF_A_ROW, *metric_columns, *kwargs_columns)]
    hparams = {column: _typed([row[column] for row in rows.values()]) for column in hparam_columns}
    for column, values in hparams.items():
        _ask_about(file, column, values)
    models: dict[str, ModelSpec] = {}
    for i, (line, row) in enumerate(rows.items()):
        name, place = row["model"], f"{file}: line {line}"
        if not name or name in models:
            raise OptionError(f"{place}: {f'duplicate model {name!r}' if name else f'model {name!r} has no name'}")
        metrics = {}
        for column in metric_columns:
            if row[column]:
                value = _number(row[column])
                fault = "is not a finite number" if value is None else _metric_fault(column, value)
                if value is None or fault:
                    raise OptionError(f"{place}: {column}={row[column]!r} {fault}")
                metrics[column] = value
        factory = row.get("factory") or common.factory
        if factory is None:
            raise OptionError(f"{manifest}: factory: is missing: give the dotted path of what returns the architecture")
        if not is_dotted_path(factory):
            raise OptionError(f"{place}: factory={factory!r} must be a dotted path such as torchvision.models.resnet18")
        own = {c.removeprefix(_KWARGS): _yaml_cell(row[c], f"{place}: {c}") for c in kwargs_columns if row[c]}
        models[name] = ModelSpec(
            name=name,
            factory=factory,
            factory_kwargs={**common.kwargs, **own},
            weights=_weights(manifest, name, row.get("weights") or None),
            key=row.get("key") or None,
            strict=common.strict,
            hparams={c.removeprefix(_HPARAMS): known for c in hparam_columns if (known := hparams[c][i]) is not None},
            metrics=metrics,
        )
    return tuple(models.values())


def _ask_about(file: Path, column: str, values: Sequence[Scalar | None]) -> None:
    """Refuse a column of numbers that is named like a metric and would count as a hyperparameter."""
    numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if column.startswith(_HPARAMS) or not numbers or not looks_like_metric(column):
        return
    better = _instead(column).removeprefix(": ")
    metric = f"{column}: {better} makes it a metric, " if better and better != column else ""
    as_it_is = better.partition("_")[2] if better == column else ""
    raise OptionError(
        f"{file}: the column {column!r} is named like a metric, and would count as a hyperparameter. "
        + (f"metric: {as_it_is} in the manifest makes it the metric. " if as_it_is else "")
        + f"Beside table, in the manifest, columns says what it is: {{{metric}{column}: null leaves it out, "
        f"{column}: {_HPARAMS}{column} makes it a hyperparameter}}"
    )


def _yaml_cell(text: str, place: str) -> Any:
    """A cell as it would be read in the manifest."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(f"{place}={text!r} cannot be read as YAML: {' '.join(str(error).split())}") from error


def _read_csv(file: Path, renamed: Mapping[str, str | None]) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The header, columns renamed or left out, and by line number the rows that are not empty."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except FileNotFoundError:
        raise OptionError(f"{file}: there is no such file, though models.table of the manifest names it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"{file} cannot be read as a CSV file: {error}") from error
    header = lines[0][1] if lines else []
    for column in renamed:
        if column not in header:
            raise OptionError(f"{file} has no column {column!r}, which columns names{nearest(column, header)}")
    header = [column if renamed.get(column, column) is None else str(renamed.get(column, column)) for column in header]
    left_out = [column for column, name in renamed.items() if name is None]
    if "model" not in header:
        raise OptionError(
            f"{file}: no column is named 'model'; columns, split at commas: {', '.join(header) or 'none'}; "
            "another that has the names is called so by columns: {its name: model}, beside table in the manifest"
        )
    if len(set(header)) != len(header) or "" in header:
        raise OptionError(f"{file}: columns need names of their own, but are {', '.join(map(repr, header))}")
    if len(lines) == 1:
        raise OptionError(f"{file} has no models, only a header")
    for line, row in lines:
        if len(row) != len(header):
            raise OptionError(f"{file}: line {line} has {len(row)} cells, but there are {len(header)} columns")
    kept = [column for column in header if column not in left_out]
    cells = {line: dict(zip(header, row, strict=True)) for line, row in lines[1:]}
    return kept, {line: {column: row[column] for column in kept} for line, row in cells.items()}


def _is_metric(column: str, header: Sequence[str], metric: str) -> bool:
    """train_x and test_x are metrics if both are there or x is the metric; so train_size is none."""
    split, _, name = column.partition("_")
    pair = {"train": f"test_{name}", "test": f"train_{name}"}
    return split in pair and (name == metric or pair[split] in header)


def _typed(cells: Iterable[str]) -> list[Scalar | None]:
    """The cells of a column as one type, the first that fits all: integer, number, truth value or text."""
    texts = list(cells)
    given = [text for text in texts if text]
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d*)", text) for text in given):
        return [int(text) if text else None for text in texts]
    if all(_number(text) is not None for text in given):
        return [_number(text) if text else None for text in texts]
    if all(text.lower() in ("true", "false") for text in given):
        return [text.lower() == "true" if text else None for text in texts]
    return [text or None for text in texts]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
