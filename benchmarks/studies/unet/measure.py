"""Measure the networks of the study: ``python benchmarks/studies/unet/measure.py [folder] [--only NAME …]``.

Each result is measured one training run at a time, by as many processes as ``--workers`` says, and kept as
``<folder>/<result>/<run>.nc``. An interrupted measurement resumes, and runs that are not fully trained are left out
until they are. At the end ``<result>.nc`` is written beside this script for each result whose runs are all measured;
``report.py`` reads these files.

With receptive fields, the layers with few pixels are measured on eight times as many patches as the others: at the
deepest layer a patch is a single pixel. Their part of the network runs alone, which takes a small part of the time of
the whole.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from genmeasures_unet import ResidualUNet, UNetDenoising, UNetSegmentation
from networks import recipe
from torch import Tensor, nn

import genmeasures
from genmeasures.extractors import ReceptiveField, WholeTensor
from genmeasures.interfaces import Extractor, TaskModel
from genmeasures.results import combine, load, save
from genmeasures.tasks.pool import one_thread, run_in_processes

HERE = Path(__file__).parent
PATCHES, MANY = 198, 8 * 198
"""Patches per split: the paper's number of exams, and that of the layers with few pixels."""
DEEP = ("encoder.3.conv", "encoder.4.conv", "decoder.0.conv")
"""Layers with at most four pixels per patch."""
CAP = 20_000
"""Vectors per layer; ``tables.md`` compares values with those of the paper's 80,000."""


@dataclass(frozen=True)
class Result:
    """One result file: some networks, measured in one way."""

    experiment: str
    """Recipe of the task, without ".yaml"."""
    extractor: Extractor
    options: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])
    """Options that override those of the recipe; the models of several are joined."""


_SEEDS = [{"seeds": [0]}, {"seeds": [1, 2], "every": 2}]
_THINNED = [{"seeds": [0, 1, 2], "every": 4}]
_UNSHIFTED = [{"shift": None}]
_OTHER_SHIFTS = {"contrast": 2.0, "resolution": 2}
"""Kinds and strengths of shifts by which networks are scored but not measured."""
PIXELS, TENSORS = ReceptiveField(cap=CAP), WholeTensor()
BLOCKS, BLOCK_TENSORS = ReceptiveField(cap=CAP, tap="block"), WholeTensor(tap="block")

RESULTS = {
    "receptive_field": Result("unet_hippocampus", PIXELS, _SEEDS),
    "whole_tensor": Result("unet_hippocampus", TENSORS, _SEEDS),
    "few_cases_receptive_field": Result("unet_few_cases", PIXELS, _UNSHIFTED),
    "few_cases_shifted_receptive_field": Result("unet_few_cases", PIXELS),
    "few_cases_whole_tensor": Result("unet_few_cases", TENSORS, _UNSHIFTED),
    "few_cases_shifted_whole_tensor": Result("unet_few_cases", TENSORS),
    "block_receptive_field": Result("unet_hippocampus", BLOCKS, _THINNED),
    "block_whole_tensor": Result("unet_hippocampus", BLOCK_TENSORS, _THINNED),
    "denoising_receptive_field": Result("unet_denoising", PIXELS),
    "denoising_whole_tensor": Result("unet_denoising", TENSORS),
    "large_receptive_field": Result("unet_hippocampus", ReceptiveField(), [{"every": 8}]),
}
"""All results, in the order in which they are measured."""


class Beginning(nn.Module):
    """The part of a network up to the last of the layers with few pixels, under the same names.

    Its output is what the next layer of the network reads.
    """

    def __init__(self, network: ResidualUNet) -> None:
        super().__init__()
        self.encoder = network.encoder
        self.decoder = network.decoder[:1]

    def forward(self, x: Tensor) -> Tensor:
        read = []
        for down in self.encoder:
            read.append(x)
            x = down(x)
        x = self.decoder[0](x, list(read[-1].shape[2:]))
        return torch.cat([x, read[-1]], 1)


class _Deep:
    """Mixed into a task: models end where those layers end."""

    def models(self) -> Sequence[TaskModel]:
        models: Sequence[TaskModel] = super().models()  # type: ignore[misc]
        return [replace(model, build=functools.partial(_beginning, model)) for model in models]


class DeepSegmentation(_Deep, UNetSegmentation): ...


class DeepDenoising(_Deep, UNetDenoising): ...


def _beginning(model: TaskModel) -> nn.Module:
    network = model.build()
    assert isinstance(network, ResidualUNet)
    return Beginning(network).eval()


@dataclass(frozen=True)
class Job:
    """The networks of one training run, to be measured for one result."""

    result: Result
    options: Mapping[str, Any]
    """All options of the task, restricted to this run."""
    path: Path


def jobs(name: str, folder: Path) -> Iterator[tuple[Job, bool]]:
    """The jobs of a result, and whether the networks are trained."""
    result = RESULTS[name]
    for options in result.options:
        whole = {**recipe(result.experiment), "workers": 1, **options}
        kind = UNetDenoising if result.experiment == "unet_denoising" else UNetSegmentation
        task = kind(**whole)
        for run in task.runs(task.cases()):
            of_run = {**run.problem.hparams, "seeds": run.seed}
            lists = {key: [of_run[key]] for key in ("train_cases", "seeds") if key in of_run}
            if "objective" in of_run:
                lists["objectives"] = [of_run["objective"]]
            trained = run.checkpoint(task.epochs).is_file()
            yield Job(result, {**whole, **lists}, folder / name / f"{run.folder.name}.nc"), trained


def measure(job: Job) -> None:
    """Measure the networks of a run, unless it is done, and write the result."""
    if job.path.is_file():
        return
    job.path.parent.mkdir(parents=True, exist_ok=True)
    whole, deep = (UNetDenoising, DeepDenoising) if "noise" in job.options else (UNetSegmentation, DeepSegmentation)
    with one_thread():
        first = whole(**{**job.options, "patches": PATCHES})
        if isinstance(job.result.extractor, WholeTensor):
            ds = _measured(first, job, None)
        else:
            names = [name for name, module in first.models()[0].build().named_modules() if _has_weights(module)]
            parts = [_measured(first, job, [name for name in names if name not in DEEP])]
            parts += [_measured(deep(**{**job.options, "patches": MANY}), job, list(DEEP))]
            ds = joined(parts, names)
        if job.options.get("shift") is not None:
            ds = _with_other_shifts(ds, first)
    save(ds, job.path)


def _with_other_shifts(ds: xr.Dataset, task: UNetSegmentation) -> xr.Dataset:
    """The result with the test IoU under the other shifts, as coordinates ``<shift>_iou``."""
    for shift, strength in _OTHER_SHIFTS.items():
        models = UNetSegmentation(**{**task.options(), "shift": shift, "strength": strength}).models()
        scores = {model.name: model.metrics["test_iou"] for model in models}
        ds = ds.assign_coords({f"{shift}_iou": ("model", [scores[str(name)] for name in ds["model"].values])})
    return ds


def _measured(task: UNetSegmentation | UNetDenoising, job: Job, layers: list[str] | None) -> xr.Dataset:
    kept = job.path.parent / "kept" / f"{job.path.stem}_{task.patches}"
    return genmeasures.measure(task, extractor=job.result.extractor.clone(), layers=layers, keep=kept, progress=False)


def _has_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def joined(parts: Sequence[xr.Dataset], names: Sequence[str]) -> xr.Dataset:
    """The same models, with the layers of all parts in the order of ``names``; attributes are those of the first."""
    found = [str(name) for ds in parts for name in ds["layer_name"].values[0]]
    ds = xr.concat(
        [part.drop_vars("layer") for part in parts],
        dim="layer",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    order = [found.index(name) for name in names]
    return ds.isel(layer=order).assign_coords(layer=np.arange(len(names)))


def compact(ds: xr.Dataset) -> xr.Dataset:
    """The result without standard errors, and with shorter statuses: a tenth of its size.

    They do not list clusters, and do not say that outputs are read before a sum, as they are in all blocks.
    """
    ds = ds.drop_vars([name for name in ds.data_vars if "_error" in str(name)])
    for name in ds.data_vars:
        if ds[name].dtype == object:
            texts = [_short(str(text)) for text in ds[name].values.flat]
            ds[name] = (ds[name].dims, np.array(texts, dtype=object).reshape(ds[name].shape))
    return ds


def _short(status: str) -> str:
    kind, _, notes = status.partition("note: ")
    kept = [note for note in notes.split("; ") if note and not note.startswith("the output is read before")]
    return f"note: {'; '.join(re.sub(' for cluster .*', '', note) for note in kept)}" if kept else kind or "ok"


def write(name: str, folder: Path, into: Path) -> str:
    """Join the runs of a result into ``<name>.nc`` if all are measured; what became of it, for the log."""
    paths = [job.path for job, _ in jobs(name, folder)]
    missing = [path.stem for path in paths if not path.is_file()]
    if missing:
        return f"{name}: not measured yet: {', '.join(missing)}"
    parts = [compact(load(path)) for path in paths]
    save(combine(parts, parts[0].attrs), into / f"{name}.nc")
    return f"{name}: {sum(part.sizes['model'] for part in parts)} networks"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the networks of the UNet study.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "parts", help="where results of runs are kept")
    parser.add_argument("--only", nargs="*", choices=list(RESULTS), default=list(RESULTS), help="results to measure")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes")
    parser.add_argument("--into", type=Path, default=HERE, help="where the joined results are written")
    options = parser.parse_args()
    listed = {name: list(jobs(name, options.folder)) for name in options.only}
    ready = [job for of_result in listed.values() for job, trained in of_result if trained and not job.path.is_file()]
    print(f"{len(ready)} training runs to measure", flush=True)
    run_in_processes(measure, ready, options.workers)
    for name in listed:
        print(write(name, options.folder, options.into), flush=True)


if __name__ == "__main__":
    main()
