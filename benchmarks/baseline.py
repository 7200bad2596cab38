"""Straightforward scikit-learn pipeline, for comparison: it keeps all activations and unfolds all patches."""

from __future__ import annotations

import time

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import davies_bouldin_score
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

CAP = 80_000


def activations(model: nn.Module, images: Tensor, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and ReLU outputs of all convolutions, over all images."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    outputs: dict[nn.Module, list[Tensor]] = {}
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.setdefault(module, []).append(args[0])
        outputs.setdefault(module, []).append(output.relu())

    handles = [layer.register_forward_hook(hook) for layer in layers]
    with torch.inference_mode():
        for part in images.split(batch):
            model(part)
    for handle in handles:
        handle.remove()
    return [torch.cat(inputs[layer]) for layer in layers], [torch.cat(outputs[layer]) for layer in layers]


def pipeline(
    model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], batch: int
) -> dict[str, float]:
    """Compute Davies–Bouldin index, roughness and confidence of all layers; seconds in total and in forward passes."""
    begin = time.perf_counter()
    _, train_outputs = activations(model, train[0], batch)
    inputs, test_outputs = activations(model, test[0], batch)
    forward = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    for train_output, test_output, layer_input in zip(train_outputs, test_outputs, inputs, strict=True):
        positions = test_output[0, 0].numel()
        chosen = rng.permutation(train_output.shape[0] * positions)[:CAP]
        scored = rng.permutation(test_output.shape[0] * positions)[:CAP]
        pixels = train_output.flatten(2).transpose(1, 2).flatten(0, 1)[chosen].numpy()
        pca = PCA(10).fit(pixels)
        projected = pca.transform(pixels)
        davies_bouldin_score(projected, train[1].repeat_interleave(positions)[chosen].numpy())
        clusters = KMeans(5, n_init=10, random_state=0).fit(projected)
        test_pixels = test_output.flatten(2).transpose(1, 2).flatten(0, 1)[scored].numpy()
        test_projected = pca.transform(test_pixels)
        labels = clusters.predict(test_projected)
        patches = nn.functional.unfold(layer_input, 3, padding=1).transpose(1, 2).flatten(0, 1)[scored].numpy()
        davies_bouldin_score(patches, labels)
        del patches
        mixtures = [
            GaussianMixture(3, random_state=0).fit(projected[clusters.labels_ == k].astype(np.float64))
            for k in range(5)
        ]
        density = np.max([mixture.score_samples(test_projected.astype(np.float64)) for mixture in mixtures], axis=0)
        float(np.mean(density * np.linalg.norm(test_pixels, axis=1)))
    return {"seconds": time.perf_counter() - begin, "forward": forward}
