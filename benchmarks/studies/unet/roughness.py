"""Why roughness rises as the networks learn: ``python benchmarks/studies/unet/roughness.py``.

Some checkpoints of each objective are measured with other choices that the paper leaves open: patches reduced by PCA,
bare outputs instead of activations, and training patches instead of test patches. Writes ``roughness.csv``, a row for
each checkpoint, choice and layer. An interrupted run resumes.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from networks import EXPERIMENT, read_task

import genmeasures
from genmeasures.extractors import ReceptiveField
from genmeasures.files import write_atomically
from genmeasures.measures import Roughness

PATH = Path(__file__).parent / "roughness.csv"
EPOCHS = (1, 2, 3, 4, 8, 16, 24, 32)
CAP = 20_000
"""Vectors per layer."""
CHOICES = {
    "as in the study": (Roughness(), "activation"),
    "patches reduced to 10 components": (Roughness(input_pca=10), "activation"),
    "bare outputs": (Roughness(), "linear"),
    "training patches": (Roughness(split="train"), "activation"),
}


def main() -> None:
    task = read_task(EXPERIMENT)
    models = [model for model in task.models() if model.hparams["epoch"] in EPOCHS]
    train, test = task.data("train"), task.data("test")
    known = pd.read_csv(PATH) if PATH.is_file() else pd.DataFrame(columns=["model", "choice"])
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
            values = {name: ds[name].values[0] for name in ("layer_name", "weight_norm", "roughness")}
            made = pd.DataFrame({"model": model.name, "choice": choice, "layer": ds.layer.values + 1, **values})
            made = made.assign(objective=model.hparams["objective"], epoch=model.hparams["epoch"])
            made = made.assign(test_iou=model.metrics["test_iou"])
            known = made if known.empty else pd.concat([known, made], ignore_index=True)
            write_atomically(PATH, known.to_csv(index=False, float_format="%.10g").encode())


if __name__ == "__main__":
    main()
