"""Speed and memory benchmarks with targets: ``make bench``.

Each row runs in a separate process, so that its peak memory is not affected by the others, and prints one line of
JSON. The table and ``benchmarks/results.json`` are made from these lines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from genmeasures_pgdl.network import build_network
from genmeasures_pgdl.writer import write_model, write_model_configs, write_split
from genmeasures_unet import ResidualUNet
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

import genmeasures
from benchmarks.baseline import pipeline
from benchmarks.models import Images, UNet3D, tensors, vgg
from benchmarks.tfrecord import tfrecord
from genmeasures.extractors import ReceptiveField
from genmeasures.plugin import Extractor
from genmeasures.statistics.kmeans import kmeans
from genmeasures.statistics.mixture import fit_mixtures
from genmeasures.tracing import trace

_BATCH = 64
_IMAGE = (3, 32, 32)
_UNLABELED = ["roughness", "confidence"]
_LONG = 5000
"""Number of images from which a single timing of the forward pass is long enough."""


def peak() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def bare(model: nn.Module, *splits: torch.utils.data.Dataset[tuple[Tensor, Tensor]], batch: int = _BATCH) -> float:
    """Seconds of the forward passes alone, including the loading of the data."""
    loaders = [torch.utils.data.DataLoader(split, batch_size=batch) for split in splits]
    with torch.inference_mode():
        model(next(iter(loaders[0]))[0])
        begin = time.perf_counter()
        for loader in loaders:
            for inputs, _ in loader:
                model(inputs)
    return time.perf_counter() - begin


def ours(model: nn.Module, train: object, test: object, extractor: Extractor | str, batch: int = _BATCH) -> float:
    """Seconds of the three measures."""
    begin = time.perf_counter()
    ds = genmeasures.measure([model], train, test, extractor=extractor, batch_size=batch)
    seconds = time.perf_counter() - begin
    for name in ("davies_bouldin", "roughness", "confidence"):
        assert bool(ds[name].notnull().all()), ds[f"{name}_status"].values
    return seconds


def against_bare(
    model: nn.Module, count: int, shape: tuple[int, ...], extractor: str | Extractor, batch: int = _BATCH
) -> dict[str, float]:
    """Time and memory of the measures, compared with the forward passes alone over the same images."""
    train, test = (torch.utils.data.TensorDataset(*tensors(count, shape, seed)) for seed in (1, 2))
    return _compare(model, train, test, extractor, batch)


def _compare(model: nn.Module, train, test, extractor: str | Extractor, batch: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    # A small run first, so that compiled code is loaded and the allocator is warm for both.
    genmeasures.measure([vgg()], tensors(8, _IMAGE, 3), tensors(8, _IMAGE, 4))
    floor = bare(model, train, test, batch=batch)
    before = peak()
    seconds = ours(model, train, test, extractor, batch)
    memory = peak() - before
    if len(train) < _LONG:  # the speed of the machine varies: use the mean of the times before and after
        floor = (floor + bare(model, train, test, batch=batch)) / 2
    return {"bare": floor, "seconds": seconds, "ratio": seconds / floor, "memory": memory, "peak": before + memory}


def vgg_small(fraction: float) -> dict[str, float]:
    return against_bare(vgg(), int(1000 * fraction), _IMAGE, "receptive_field")


def vgg_large(fraction: float) -> dict[str, float]:
    # Generated on access, as if read from a disk, so that only the memory of the measures grows with the data.
    train, test = (Images(int(10_000 * fraction), _IMAGE, seed) for seed in (1, 2))
    return _compare(vgg(), train, test, "receptive_field", _BATCH)


def vgg_all(fraction: float) -> dict[str, float]:
    return against_bare(vgg(), int(1000 * fraction), _IMAGE, ReceptiveField(cap=None))


def unet(fraction: float) -> dict[str, float]:
    return against_bare(UNet3D().eval(), int(200 * fraction), (1, 64, 64, 16), "receptive_field", 8)


def whole_tensor(fraction: float) -> dict[str, float]:
    # With fewer vectors without structure, clusters would be single vectors, and new vectors all in one cluster.
    return against_bare(vgg(), max(100, int(1000 * fraction)), _IMAGE, "whole_tensor")


def pgdl(fraction: float) -> dict[str, float]:
    """A task of the size of the competition's first one (1.67 million parameters), read from disk."""
    config = {
        "model_config": [
            *(
                layer
                for _ in range(3)
                for layer in (
                    {"layer_name": "Conv2D", "filters": 256, "kernel_size": 3, "padding": "same", "activation": "relu"},
                    {"layer_name": "MaxPooling2D"},
                )
            ),
            {"layer_name": "Flatten"},
            {"layer_name": "Dense", "units": 117, "activation": "relu"},
            {"layer_name": "Dense", "units": 10},
        ],
        "input_shape": [32, 32, 3],
    }
    network = build_network(config).module.to_empty(device="cpu")
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.02, generator=torch.Generator().manual_seed(value.numel()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "task1_v4"
        write_model(folder / "model_0", config, network, network)
        known = {"train_accuracy": 1.0, "test_accuracy": 0.5}
        write_model_configs(folder / "model_configs.json", {"0": {"width": 256}}, {"0": known})
        for seed, split in enumerate(("train", "test")):
            inputs, targets = tensors(int(1000 * fraction), _IMAGE, seed + 1)
            write_split(folder / "dataset_1" / split, inputs, targets)
        task = genmeasures.load_task("pgdl", path=folder)
        begin = time.perf_counter()
        model = task.models()[0].build()
        loading = time.perf_counter() - begin
        made = _compare(model, task.data("train"), task.data("test"), "receptive_field", _BATCH)
    seconds = made["seconds"] + loading
    return {**made, "loading": loading, "seconds": seconds, "ratio": seconds / made["bare"]}


def tiles(fraction: float) -> dict[str, float]:
    """A volume of 256³ in tiles and as a whole: additional memory and time."""
    side = max(48, 8 * round(32 * fraction ** (1 / 3)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResidualUNet(depth=2).eval()
    volume = torch.randn(1, 1, side, side, side, generator=torch.Generator().manual_seed(1))
    found, times, memory = [], [], []
    genmeasures.measure([model], volume[..., :32, :32, :32], volume[..., :32, :32, :32], measures=_UNLABELED)
    before = peak()
    for tile in (side * 3 // 8, None):  # the tiles first, because peak memory never decreases
        begin = time.perf_counter()
        ds = genmeasures.measure([model], volume, volume, measures=_UNLABELED, tile=tile)
        times.append(time.perf_counter() - begin)
        memory.append(peak() - before)
        found.append(np.stack([ds[name].values for name in _UNLABELED]))
    # In double precision they agree to 1e-8. Some log densities are close to 0; there, 0.5 % of the density is allowed.
    np.testing.assert_allclose(*found, rtol=1e-3, atol=5e-3)
    return {
        "seconds": times[0],
        "ratio": times[0] / times[1],
        "memory": memory[0],
        "memory_ratio": memory[0] / memory[1],
    }


def tracing(fraction: float) -> dict[str, float]:
    """Peak resident memory of a trace of three volumes of 64³, compared with the forward pass alone."""
    side = max(16, 8 * round(8 * fraction ** (1 / 3)))
    model, volumes = UNet3D().eval(), torch.randn(3, 1, side, side, side, generator=torch.Generator().manual_seed(1))
    small = torch.zeros(3, 1, 16, 16, 16)
    with torch.no_grad():
        model(small)
        trace(model, small, "activation")
        before = peak()
        model(volumes)
        floor = peak() - before
        begin = time.perf_counter()
        trace(model, volumes, "activation")
        seconds = time.perf_counter() - begin
    above = peak() - before - floor
    return {"bare_memory": floor, "memory": above, "memory_ratio": above / max(floor, 1e-3), "seconds": seconds}


def sklearn(fraction: float) -> dict[str, float]:
    """The three measures, compared with a scikit-learn pipeline."""
    model = vgg()
    train, test = (tensors(int(1000 * fraction), _IMAGE, seed) for seed in (1, 2))
    genmeasures.measure([vgg()], tensors(8, _IMAGE, 3), tensors(8, _IMAGE, 4))
    floor = bare(model, torch.utils.data.TensorDataset(*train), torch.utils.data.TensorDataset(*test))
    seconds = ours(model, train, test, "receptive_field")
    theirs = pipeline(model, train, test, _BATCH)
    floor = min(floor, theirs["forward"])
    return {
        "bare": floor,
        "seconds": seconds,
        "sklearn": theirs["seconds"],
        "end_to_end": theirs["seconds"] / seconds,
        "beside_forward": (theirs["seconds"] - theirs["forward"]) / max(1e-9, seconds - floor),
    }


def clustering(fraction: float) -> dict[str, float]:
    """k-means and mixtures of one layer, 80 000 × 10, compared with scikit-learn: medians over 20 seeds."""
    model, seeds = vgg(), math.ceil(20 * fraction)
    with torch.inference_mode():
        output = model[:4](tensors(int(400 * fraction), _IMAGE, 1)[0]).flatten(2).transpose(1, 2).flatten(0, 1)
    chosen = torch.randperm(len(output), generator=torch.Generator().manual_seed(0))[: int(80_000 * fraction)]
    pixels = output[chosen].double().numpy()
    points = np.ascontiguousarray(PCA(10).fit_transform(pixels))
    tensor = torch.from_numpy(points)
    rows = []
    for seed in range(seeds):
        begin = time.perf_counter()
        clusters = kmeans(tensor, 5, torch.Generator().manual_seed(seed))
        mixtures = fit_mixtures(tensor, clusters.labels, 3, torch.Generator().manual_seed(seed))
        seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        reference = KMeans(5, n_init=10, random_state=seed).fit(points)
        fitted = [GaussianMixture(3, random_state=seed).fit(points[reference.labels_ == k]) for k in range(5)]
        theirs = time.perf_counter() - begin
        own = mixtures.mixture_log_densities(tensor).gather(1, clusters.labels[:, None]).mean()
        score = np.mean(
            [fitted[k].score(points[reference.labels_ == k]) * (reference.labels_ == k).mean() * 5 for k in range(5)]
        )
        rows.append((theirs / seconds, clusters.inertia / reference.inertia_, float(own) - score))
    speed, inertia, likelihood = np.median(np.array(rows), axis=0)
    return {"faster": float(speed), "inertia_ratio": float(inertia), "log_likelihood_gain": float(likelihood)}


Check = tuple[str, str, str, float, bool]
"""Row, description, key, target, and whether less is better."""
CHECKS: list[Check] = [
    ("vgg_small", "three measures, 1,000 + 1,000 images, × bare forward", "ratio", 2.0, True),
    ("vgg_small", "the same, memory above the bare forward pass, GB", "memory", 1.5, True),
    ("sklearn", "the same, × faster than scikit-learn end to end", "end_to_end", 2.5, False),
    ("sklearn", "the same, × faster beside the forward passes", "beside_forward", 6.0, False),
    ("vgg_large", "10,000 + 10,000 images, × bare forward", "ratio", 1.6, True),
    ("vgg_large", "the same, peak memory / that of the 1,000 case", "memory_ratio", 1.1, True),
    ("vgg_large", "the same, memory above the bare forward pass, GB", "memory", 1.5, True),
    ("vgg_all", "every patch (cap: null), × bare forward", "ratio", 2.5, True),
    ("unet", "3D residual UNet, 200 + 200 patches of 64×64×16, × bare forward", "ratio", 2.5, True),
    ("tiles", "a volume of 256³ in tiles of 96³, memory / that as a whole", "memory_ratio", 0.4, True),
    ("tiles", "the same, time / that as a whole", "ratio", 2.0, True),
    (
        "tracing",
        "a trace of three volumes of 64³, memory above the bare pass / that of the pass",
        "memory_ratio",
        0.3,
        True,
    ),
    ("whole_tensor", "whole tensors, 1,000 images, up to 65,536 dimensions, × bare forward", "ratio", 2.0, True),
    ("pgdl", "a PGDL model of task 1's size, read from disk, 1,000 images, × bare forward", "ratio", 2.5, True),
    ("tfrecord", "TFRecord shards with their checksums, MB/s", "megabytes", 200.0, False),
    ("tfrecord", "the same, × faster than a plain Python loop", "faster", 5.0, False),
    ("clustering", "k-means and mixtures of a layer, × faster than scikit-learn", "faster", 6.0, False),
    ("clustering", "the same, inertia / scikit-learn's", "inertia_ratio", 1.0005, True),
    ("clustering", "the same, log-likelihood − scikit-learn's", "log_likelihood_gain", -0.005, False),
]
ROWS: dict[str, Callable[[float], dict[str, float]]] = {
    row.__name__: row
    for row in (vgg_small, sklearn, vgg_large, vgg_all, unet, tiles, tracing, whole_tensor, pgdl, tfrecord, clustering)
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="rows to run (default: all)")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="fraction of the images (default: 1; timings need all of them)"
    )
    parser.add_argument("--output", default="benchmarks/results.json")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(ROWS[options.row](options.fraction)))
        return 0
    missed = 0
    results: dict[str, dict[str, float]] = {}
    for name in options.rows or ROWS:
        begin = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.run", "--row", name, "--fraction", str(options.fraction)],
            stdout=subprocess.PIPE,
            check=False,
        )
        if process.returncode:
            print(f"{name}: failed")
            missed += 1
            continue
        results[name] = json.loads(process.stdout.decode().splitlines()[-1])
        print(f"{name}: {time.perf_counter() - begin:.0f} s  {results[name]}", file=sys.stderr)
    if "vgg_small" in results and "vgg_large" in results:
        results["vgg_large"]["memory_ratio"] = results["vgg_large"]["peak"] / results["vgg_small"]["peak"]
    print(f"{'':<72} {'target':>9} {'figure':>8}")
    for row, what, key, target, less in CHECKS:
        if key in results.get(row, {}):
            figure = results[row][key]
            good = figure <= target if less else figure >= target
            missed += not good
            print(f"{what:<72} {'≤' if less else '≥'} {target:<7} {figure:>8.3f}  {'met' if good else 'MISSED'}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    output = Path(options.output)
    previous = json.loads(output.read_text())["rows"] if output.is_file() else {}
    output.write_text(json.dumps({"machine": machine, "rows": {**previous, **results}}, indent=1) + "\n")
    return missed > 0


if __name__ == "__main__":
    sys.exit(main())
