"""How many vectors the deepest layers need: ``python benchmarks/studies/unet/sampling.py``.

At the deepest layer a patch is a single pixel, so that the study's 198 patches are 198 vectors, on which fifteen
Gaussians in ten dimensions are fitted. All checkpoints are measured again with eight times as many patches, in the
three deepest layers; writes ``sampling.nc``, which ``report.py`` reads. An interrupted run resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from networks import EXPERIMENT, read_task

import genmeasures
from genmeasures.results import save

HERE = Path(__file__).parent
LAYERS = ["encoder.3.conv", "encoder.4.conv", "decoder.0.conv"]
PATCHES = 8 * 198


def main() -> None:
    task = read_task(EXPERIMENT, patches=PATCHES)
    models = task.models()
    parts = HERE / "sampling.parts"
    ds = genmeasures.measure(
        {model.name: model.build() for model in models},
        task.data("train"),
        task.data("test"),
        measures=["davies_bouldin", "roughness", "confidence"],
        layers=LAYERS,
        keep=parts,
    )
    known = {name: ("model", [model.metrics[name] for model in models]) for name in ("test_iou", "train_iou")}
    told = {name: ("model", [model.hparams[name] for model in models]) for name in ("objective", "epoch", "seed")}
    save(ds.assign_coords({**known, **told}), HERE / "sampling.nc")
    shutil.rmtree(parts)


if __name__ == "__main__":
    main()
