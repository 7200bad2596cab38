"""Networks with and without fully connected layers, in the format of PGDL: ``python benchmarks/studies/unet/pgdl.py``.

The paper's Figures 5 to 7. Two grids of networks are trained on CIFAR-10, whose Python files ``--cifar10`` names:
convolutions followed by fully connected layers (``vgg``, 8 layers), and convolutions alone (``nin``, 13 layers).
Writes ``pgdl_<family>_<extractor>.nc``, which ``report.py`` reads, and the whole tensors of the best and of the worst
network with fully connected layers, ``pgdl_best.png`` and ``pgdl_worst.png``. Networks are trained once, and an
interrupted run resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from figures import write
from genmeasures_pgdl import PGDL, make_task
from measure import compact

import genmeasures
from genmeasures import plot
from genmeasures.extractors import ReceptiveField
from genmeasures.results import save

HERE = Path(__file__).parent
FAMILIES = {"vgg": {"width": [8, 16], "depth": [2]}, "nin": {"width": [12, 24], "depth": [3]}}
"""Levels of the hyperparameters that are not shared, by family."""
SHARED = {"dropout": [0.0, 0.3], "weight_decay": [0.0, 0.1], "batch_size": [8, 32], "learning_rate": [0.001]}
EXTRACTORS = {"whole_tensor": "whole_tensor", "receptive_field": ReceptiveField(cap=20_000)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure networks in the format of PGDL.")
    parser.add_argument("folder", type=Path, help="where the networks are kept")
    parser.add_argument(
        "--cifar10", type=Path, required=True, help="folder with data_batch_1 … data_batch_5, test_batch"
    )
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--into", type=Path, default=HERE, help="where the results are written")
    options = parser.parse_args()
    for family, levels in FAMILIES.items():
        path = make_task(
            options.folder / f"pgdl_{family}",
            family,
            "cifar10",
            options.cifar10,
            train_size=options.images,
            epochs=options.epochs,
            grid={**levels, **SHARED},
        )
        for name, extractor in EXTRACTORS.items():
            kept = options.folder / f"kept_{family}_{name}"
            ds = genmeasures.measure(PGDL(path), extractor=extractor, keep=kept)
            save(compact(ds), options.into / f"pgdl_{family}_{name}.nc")
        if family == "vgg":
            manifolds(PGDL(path), options.into)


def manifolds(task: PGDL, folder: Path) -> None:
    """Draw the whole tensors of the training images in each layer of the best and of the worst network."""
    models = sorted(task.models(), key=lambda model: model.metrics["test_accuracy"])
    for name, model in (("worst", models[0]), ("best", models[-1])):
        figure = plot.manifold(model.build, task.data("train"), extractor="whole_tensor")
        write(figure, folder / f"pgdl_{name}.png")


if __name__ == "__main__":
    main()
