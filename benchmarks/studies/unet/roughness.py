"""Roughness by other choices: ``python benchmarks/studies/unet/roughness.py``.

Some checkpoints of each objective are measured with what the paper leaves open: which patches are compared, bare
outputs or those of the blocks instead of activations, training patches instead of test patches, labels pushed forward
from the input of a layer, and other indices of clusters. Each is taken between raw patches and between projected ones.
Writes ``roughness.csv``, a row for each checkpoint, choice and layer. An interrupted run resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from networks import EXPERIMENT, read_task

import genmeasures
from genmeasures.extractors import ReceptiveField
from genmeasures.files import write_atomically
from genmeasures.measures import Roughness

HERE = Path(__file__).parent
EPOCHS = (1, 2, 3, 4, 8, 16, 24, 32)
CAP = 20_000
"""Vectors per layer."""
CHOICES = {
    "as in the study": (Roughness(), "activation"),
    "bare outputs": (Roughness(), "linear"),
    "outputs of the blocks": (Roughness(), "block"),
    "training patches": (Roughness(split="train"), "activation"),
    "pushforward": (Roughness(direction="pushforward"), "activation"),
    "Calinski–Harabasz index": (Roughness(index="calinski_harabasz"), "activation"),
    "silhouette": (Roughness(index="silhouette"), "activation"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure roughness by other choices.")
    parser.add_argument("path", type=Path, nargs="?", default=HERE / "roughness.csv", help="file of the results")
    path: Path = parser.parse_args().path
    torch.set_num_threads(1)
    task = read_task(EXPERIMENT)
    models = [model for model in task.models() if model.hparams["epoch"] in EPOCHS]
    train, test = task.data("train"), task.data("test")
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["model", "choice"])
    for model in models:
        for choice, (measure, tap) in CHOICES.items():
            if ((known["model"] == model.name) & (known["choice"] == choice)).any():
                continue
            ds = genmeasures.measure(
                {model.name: model.build()},
                train,
                test,
                measures=[measure.clone()],
                extractor=ReceptiveField(cap=CAP, tap=tap),
            )
            names = ("layer_name", "weight_norm", "roughness", "roughness_projected")
            values = {name: ds[name].values[0] for name in names}
            made = pd.DataFrame({"model": model.name, "choice": choice, "layer": ds.layer.values + 1, **values})
            made = made.assign(objective=model.hparams["objective"], epoch=model.hparams["epoch"])
            made = made.assign(test_iou=model.metrics["test_iou"])
            known = made if known.empty else pd.concat([known, made], ignore_index=True)
            write_atomically(path, known.to_csv(index=False, float_format="%.10g").encode())


if __name__ == "__main__":
    main()
