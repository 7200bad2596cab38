"""Manifest of a folder of trained models, ``manifest.yaml``: read and validated without loading a model."""

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
_FRACTIONS = ("accuracy", "iou")
"""Metrics with values from 0 to 1."""

_PREFIXES = tuple(f"{split}_" for split in SPLITS)
"""With which the names of metrics begin."""
_OF_A_MODEL = ("weights", "factory", "factory_kwargs", "key", "strict", "hparams")
_OF_A_ROW = ("model", "weights", "factory", "key")
"""Columns of a table with a fixed meaning."""
_KWARGS, _HPARAMS = "factory_kwargs.", "hparams."
"""Prefixes of the columns of a table that are arguments of the factory, and that are hyperparameters."""

_METRIC_WORDS = frozenset({
    "acc", "accuracy", "accuracies", "auc", "auroc", "ap", "bleu", "cer", "wer", "dice", "iou", "miou", "f1", "jaccard",
    "error", "errors", "err", "loss", "losses", "mae", "mse", "rmse", "nll", "ppl", "perplexity", "psnr", "ssim",
    "recall", "score", "top1", "top5",
})  # fmt: skip
"""Without "precision", which more often refers to numbers."""
_SPLIT_WORDS = frozenset({
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "ood",
})  # fmt: skip

_SPLIT_OF = {"val": "validation", "valid": "validation"}
"""Words for splits that have another name here."""


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of a data set that a class or function returns."""

    target: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """Specification of one model: architecture, weights, hyperparameters and metrics."""

    name: str
    factory: str
    """Dotted path of the callable that returns the architecture."""
    factory_kwargs: Mapping[str, Any]
    weights: tuple[Path, ...]
    """Candidate files, of which the first that exists is read; a single one if the manifest names it."""
    key: str | None
    """Entry of the file with the weights; None to search for it."""
    strict: bool
    """Whether all keys of the file must be used."""
    hparams: Mapping[str, Scalar]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Manifest:
    """A validated manifest. Its paths are absolute or relative to the working directory."""

    path: Path
    python_path: tuple[Path, ...]
    """Folders that are searched for modules."""
    metric: str
    data: Mapping[Split, ArraySpec | DatasetSpec]
    ignore_index: float | None
    """The target that means "no label"."""
    models: tuple[ModelSpec, ...]


def read_manifest(path: str | Path) -> Manifest:
    """Read and validate a manifest, without importing or loading anything.

    Args:
        path: a folder with a file ``manifest.yaml``, or the path of a manifest.

    Returns:
        The manifest.

    Raises:
        OptionError: the manifest or its table is invalid; the message names the file and the key.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = "{factory: mynet.build, models: {net_0: {test_accuracy: 0.9}}}"
        ...     _ = (Path(folder) / "manifest.yaml").write_text(text)
        ...     [(model.name, dict(model.metrics)) for model in read_manifest(folder).models]
        [('net_0', {'test_accuracy': 0.9})]
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= FILE
    top = _Section(file, "", _read_yaml(file))
    top.allow("factory", "factory_kwargs", "strict", "metric", "data", "models", "python_path")
    metric = top.text("metric") or "accuracy"
    if metric.startswith(_PREFIXES):
        top.fail("metric", f"must be {metric.partition('_')[2]!r}, without {metric.partition('_')[0]}_, got {metric!r}")
    models = _models(top, metric)
    metrics = {name for model in models for name in model.metrics}
    if metrics and not metrics & {f"{prefix}{metric}" for prefix in _PREFIXES}:
        others = sorted({name.partition("_")[2] for name in metrics})
        write = " or ".join(f"metric: {other}" for other in others)
        top.fail(
            "metric",
            f"no model has train_{metric} or test_{metric}; the models have {', '.join(sorted(metrics))}: "
            f"write {write}, or rename them to train_{metric} and test_{metric}",
        )
    data, ignore_index = _data(top)
    return Manifest(file, _python_path(top), metric, data, ignore_index, models)


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that refuses duplicate keys and reads 1e-3 as a number."""

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
        what = f"file{nearest(file.name, others)}" if others else "file or folder"
        raise OptionError(f"{file}: there is no such {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{file} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(f"{file} is not valid YAML: {error}") from error


class _Section:
    """A mapping in the manifest, with its position for error messages."""

    def __init__(self, file: Path, position: str, value: object) -> None:
        self.file = file
        self.position = position
        if not isinstance(value, dict):
            got = "nothing" if value is None else type(value).__name__
            raise OptionError(f"{file}: {position or 'the manifest'}: must have keys and values, got {got}")
        for key in value:
            if not isinstance(key, str):
                self.fail(str(key), f"is read as {type(key).__name__}; put the name in quotes")
        self.values: dict[str, Any] = value

    def fail(self, key: str, fault: str) -> NoReturn:
        raise OptionError(f"{self.file}: {self.path(key)}: {fault}")

    def path(self, key: str) -> str:
        return f"{self.position}.{key}" if self.position else key

    def allow(self, *keys: str, prefixes: tuple[str, ...] = ()) -> None:
        for key in self.values:
            if key not in keys and not (prefixes and key.startswith(prefixes)):
                self.fail(key, f"unknown key{nearest(key, [*keys, *(f'{p}…' for p in prefixes)])}")

    def section(self, key: str) -> _Section:
        """A nested mapping; empty if the key is absent."""
        value = self.values.get(key)
        return _Section(self.file, self.path(key), {} if value is None else value)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.fail(key, f"must be text, got {value!r}")
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
            self.fail(key, f"must be a finite number, got {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"must be true or false, got {value!r}")
        return value

    def target(self, key: str) -> str | None:
        value = self.text(key)
        if value is not None and not is_dotted_path(value):
            self.fail(key, f"must be a dotted path such as torchvision.models.resnet18, got {value!r}")
        return value

    def file_path(self, key: str) -> Path | None:
        value = self.text(key)
        return None if value is None else resolve(self.file, value)


def resolve(manifest: Path, path: str) -> Path:
    """Resolve a path relative to the manifest.

    Args:
        manifest: path of the manifest.
        path: path in it, relative or absolute; ``~`` is the home folder.

    Returns:
        The path, relative to the working directory or absolute.

    Example:
        >>> resolve(Path("nets/manifest.yaml"), "net_0.pth").as_posix()
        'nets/net_0.pth'
    """
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
        section.fail("ignore_index", f"must be a number, such as 255, got {ignore_index!r}")
    return {split: _one_data(section.section(split)) for split in splits}, ignore_index


def _one_data(section: _Section) -> ArraySpec | DatasetSpec:
    if ("_target_" in section.values) == ("npz" in section.values):
        raise OptionError(
            f"{section.file}: {section.position}: must have either npz, a file, or _target_, a class or function"
        )
    target = section.target("_target_")
    if target is not None:
        return DatasetSpec(target, {key: value for key, value in section.values.items() if key != "_target_"})
    section.allow("npz", "x", "y", "layout", "scale", "mean", "std")
    npz, x, layout, scale = section.file_path("npz"), section.text("x"), section.text("layout"), section.number("scale")
    if npz is None:
        section.fail("npz", "is empty: set the path of a file")
    if x is None:
        section.fail("x", "is missing: set the name of the array with the inputs")
    if layout is not None and (fault := layout_fault(layout)):
        section.fail("layout", fault)
    if scale is not None and scale <= 0:
        section.fail("scale", f"must be positive, got {scale}")
    std = section.numbers("std")
    if std is not None and min(std, default=0) <= 0:
        section.fail("std", f"must be positive, got {section.values['std']}")
    mean = section.numbers("mean")
    return ArraySpec(npz, x, section.text("y"), layout, scale, mean, std)


def _models(top: _Section, metric: str) -> tuple[ModelSpec, ...]:
    common = _Common(top.target("factory"), top.section("factory_kwargs").values, top.flag("strict", True))
    section = top.section("models")
    if not section.values:
        top.fail("models", "is missing: list the models by name, or set table to a CSV file")
    if isinstance(section.values.get("table"), str):
        section.allow("table", "columns")
        renamed = section.section("columns").values
        for column, name in renamed.items():
            if name is not None and not isinstance(name, str):
                section.section("columns").fail(column, f"must be the name of a column, or null, got {name!r}")
        return _table(resolve(top.file, section.values["table"]), top.file, common, renamed, metric)
    return tuple(_one_model(section.section(name), name, common, metric) for name in section.values)


@dataclass(frozen=True)
class _Common:
    """Defaults of all models."""

    factory: str | None
    kwargs: Mapping[str, Any]
    strict: bool


def _one_model(section: _Section, name: str, common: _Common, metric: str) -> ModelSpec:
    for key in section.values:
        split, _, named = key.partition("_")
        if split in SPLITS and metric == "accuracy" and _words(named) == ["acc"]:
            section.fail(key, f"write {split}_accuracy, or metric: {named} at the top of the manifest")
        if key not in _OF_A_MODEL and not key.startswith(_PREFIXES) and looks_like_metric(key):
            starts = "must start with train_, test_ or validation_"
            section.fail(key, f"looks like a metric, whose name {starts}{_instead(key, 'write ')}")
    section.allow(*_OF_A_MODEL, prefixes=_PREFIXES)
    factory = section.target("factory") or common.factory
    if factory is None:
        section.fail(
            "factory",
            "is missing here and at the top level: set the dotted path of the callable that returns the architecture",
        )
    hparams = section.section("hparams")
    for key, value in hparams.values.items():
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            hparams.fail(key, f"must be a finite number, text, true or false, got {value!r}")
    metrics = {}
    for key in section.values:
        if key.startswith(_PREFIXES) and (value := section.number(key)) is not None:
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


def _weights(manifest: Path, name: str, file: str | None) -> tuple[Path, ...]:
    if file is not None:
        return (resolve(manifest, file),)
    return tuple(resolve(manifest, name + suffix) for suffix in SUFFIXES)


def _metric_fault(name: str, value: float) -> str | None:
    if name.partition("_")[2] in _FRACTIONS and not 0 <= value <= 1:
        return f"must be a fraction from 0 to 1, got {value:g}"
    return None


def looks_like_metric(name: str) -> bool:
    """Whether a name suggests a metric of a trained model rather than a hyperparameter.

    Args:
        name: name of a column or key.

    Returns:
        True for names such as "val_loss".

    Example:
        >>> [name for name in ("val_loss", "acc@1", "Test/F1", "loss_weight", "train_size") if looks_like_metric(name)]
        ['val_loss', 'acc@1', 'Test/F1']
    """
    words = _words(name)
    metrics = [word in _METRIC_WORDS for word in words]
    return any(metrics) and (metrics[-1] or words[0] in _SPLIT_WORDS)


def _words(name: str) -> list[str]:
    """The lowercase words of a name without trailing numbers: "acc" for acc@1."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.replace("IoU", "Iou")).lower()
    words = [word if word in _METRIC_WORDS else word.rstrip("0123456789") for word in re.findall(r"[^\W_]+", spaced)]
    return [word for word in words if word]


def _instead(name: str, before: str = "") -> str:
    """Suggested name of a metric, after a colon; "" if there is none."""
    words = _words(name)
    split = next((_SPLIT_OF.get(word, word) for word in words if _SPLIT_OF.get(word, word) in SPLITS), None)
    rest = [word for word in words if word not in _SPLIT_WORDS]
    base = "accuracy" if {"acc", "accuracy"} & set(rest) else "_".join(rest)
    if not base or (split is None and words[0] in _SPLIT_WORDS):
        return ""
    if split == "validation" and base != "accuracy":  # unlike it, the others need train_ and test_ beside them
        return ""
    return f": {before}{split or 'test'}_{base}"


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
        name, where = row["model"], f"{file}: line {line}"
        if not name or name in models:
            raise OptionError(f"{where}: {f'duplicate model {name!r}' if name else 'the model has no name'}")
        metrics = {}
        for column in metric_columns:
            if row[column]:
                value = _number(row[column])
                fault = "must be a finite number" if value is None else _metric_fault(column, value)
                if value is None or fault:
                    raise OptionError(f"{where}: {column}={row[column]!r}: {fault}")
                metrics[column] = value
        factory = row.get("factory") or common.factory
        if factory is None:
            raise OptionError(
                f"{manifest}: factory: is missing: set the dotted path of the callable that returns the architecture"
            )
        if not is_dotted_path(factory):
            raise OptionError(f"{where}: factory={factory!r} must be a dotted path such as torchvision.models.resnet18")
        own = {c.removeprefix(_KWARGS): _yaml_cell(row[c], f"{where}: {c}") for c in kwargs_columns if row[c]}
        models[name] = ModelSpec(
            name=name,
            factory=factory,
            factory_kwargs={**common.kwargs, **own},
            weights=_weights(manifest, name, row.get("weights") or None),
            key=row.get("key") or None,
            strict=common.strict,
            hparams={c.removeprefix(_HPARAMS): cell for c in hparam_columns if (cell := hparams[c][i]) is not None},
            metrics=metrics,
        )
    return tuple(models.values())


def _ask_about(file: Path, column: str, values: Sequence[Scalar | None]) -> None:
    """Refuse a numeric column that is named like a metric and would be a hyperparameter."""
    numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if column.startswith(_HPARAMS) or not numbers or not looks_like_metric(column):
        return
    better = _instead(column).removeprefix(": ")
    metric = f"{column}: {better} makes it a metric, " if better and better != column else ""
    as_it_is = better.partition("_")[2] if better == column else ""
    raise OptionError(
        f"{file}: the column {column!r} is named like a metric, but would be read as a hyperparameter. "
        + (f"metric: {as_it_is} in the manifest makes it the metric. " if as_it_is else "")
        + f"Otherwise, set columns beside table in the manifest: {{{metric}{column}: null skips it, "
        f"{column}: {_HPARAMS}{column} makes it a hyperparameter}}"
    )


def _yaml_cell(text: str, where: str) -> Any:
    """A cell, parsed like a value of the manifest."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(f"{where}={text!r} cannot be read as YAML: {' '.join(str(error).split())}") from error


def _read_csv(file: Path, renamed: Mapping[str, str | None]) -> tuple[list[str], dict[int, dict[str, str]]]:
    """The header, with renamed columns and without skipped ones, and the nonempty rows by line number."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    except FileNotFoundError:
        raise OptionError(f"{file}: there is no such file, which models.table of the manifest names") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OptionError(f"{file} cannot be read as a CSV file: {error}") from error
    header = lines[0][1] if lines else []
    for column in renamed:
        if column not in header:
            raise OptionError(
                f"{file} has no column {column!r}, which columns of the manifest names{nearest(column, header)}"
            )
    header = [column if renamed.get(column, column) is None else str(renamed.get(column, column)) for column in header]
    skipped = [column for column, name in renamed.items() if name is None]
    if "model" not in header:
        raise OptionError(
            f"{file}: there is no column 'model'; the columns, separated by commas, are {', '.join(header) or 'none'}; "
            "if another column has the names of the models, set columns: {its name: model} beside table in the manifest"
        )
    if len(set(header)) != len(header) or "" in header:
        raise OptionError(
            f"{file}: the names of the columns must be unique and not empty, got {', '.join(map(repr, header))}"
        )
    if len(lines) == 1:
        raise OptionError(f"{file} has a header but no models")
    for line, row in lines:
        if len(row) != len(header):
            raise OptionError(f"{file}: line {line}: expected {len(header)} cells, one per column, got {len(row)}")
    kept = [column for column in header if column not in skipped]
    cells = {line: dict(zip(header, row, strict=True)) for line, row in lines[1:]}
    return kept, {line: {column: row[column] for column in kept} for line, row in cells.items()}


def _is_metric(column: str, header: Sequence[str], metric: str) -> bool:
    """Whether a column is a metric: train_x and test_x are if both exist or x is the metric, unlike train_size.

    validation_x is if they are.
    """
    split, _, name = column.partition("_")
    return split in SPLITS and (name == metric or {column, f"train_{name}", f"test_{name}"} <= {*header})


def _typed(cells: Iterable[str]) -> list[Scalar | None]:
    """The cells of a column, converted to the first type that fits all: integer, number, boolean or text."""
    texts = list(cells)
    filled = [text for text in texts if text]
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d*)", text) for text in filled):
        return [int(text) if text else None for text in texts]
    if all(_number(text) is not None for text in filled):
        return [_number(text) if text else None for text in texts]
    if all(text.lower() in ("true", "false") for text in filled):
        return [text.lower() == "true" if text else None for text in texts]
    return [text or None for text in texts]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
