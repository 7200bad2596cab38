"""Test of the paper's claims on small networks: ``python benchmarks/study.py`` (about four minutes).

Networks with four convolutions of 16 kernels are trained on scikit-learn's digits, upsampled to 16×16, with and without
batch normalization, from several seeds. For all networks, also where a claim does not hold, the study prints

1. the fraction of kernels whose RS under IAM is at most that under AM (paper, figure 1);
2. the test accuracy with the half of the kernels of a layer silenced that have the lowest ARS, or the highest, and the
   largest gap of the two curves (figure 2, table 1);
3. the mean ARS with and without batch normalization (figure 3), and its standard error over starts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from genmeasures_ars import ARS, accuracy_curve, kernel_order, largest_gap
from torch import Tensor, nn

from genmeasures.plugin import ModelData, SmallCNN, Undefined, split_digits, trace

WIDTH, DEPTH, SIZE = 16, 4, 16


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train and test images (N, 1, 16, 16) and classes (N, 1)."""
    splits = []
    for x, y in split_digits():
        large = nn.functional.interpolate(torch.from_numpy(x), size=(SIZE, SIZE), mode="bilinear")
        splits.append((large, torch.from_numpy(y)[:, None]))
    return splits[0], splits[1]


def trained(x: Tensor, y: Tensor, norm: bool, seed: int, steps: int = 300) -> nn.Module:
    torch.manual_seed(seed)
    model = SmallCNN(WIDTH, DEPTH, batch_norm=norm, size=SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(steps):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen, 0]).backward()
        optimizer.step()
    return model.eval()


def data(x: Tensor, y: Tensor, seed: int) -> ModelData:
    def batches(split: str) -> Iterator[tuple[Tensor, Tensor | None]]:
        yield x, y

    return ModelData(
        batches=batches,
        sample=lambda split, count: (x[:count], y[:count]),
        order=lambda split: np.arange(len(x)),
        device=x.device,
        generator=torch.Generator().manual_seed(seed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    (x, y), (x_test, y_test) = digits()
    whole: dict[bool, list[float]] = {False: [], True: []}
    for norm in (False, True):
        at_most: list[float] = []
        strictly: list[float] = []
        halves: list[tuple[float, float, float]] = []
        for seed in range(options.seeds):
            begin = time.perf_counter()
            model = trained(x, y, norm, seed)
            traced = trace(model, x[:3], "activation").layers
            traced = [layer for layer in traced if layer.layer.kind == "Conv2d"]
            layers = [layer.layer for layer in traced]
            values = {
                name: ARS(name, steps=options.steps).measure(model, layers, data(x_test, y_test, seed))
                for name in ("am", "iam")
            }
            means = []
            for index, layer in enumerate(traced):
                am, iam, scores, error, response = (
                    values[objective][name][index]
                    for objective, name in (
                        ("am", "rs_kernel"), ("iam", "rs_kernel"), ("iam", "ars_kernel"), ("iam", "ars_error"),
                        ("iam", "ar_kernel"),
                    )
                )  # fmt: skip
                if isinstance(scores, Undefined) or isinstance(am, Undefined):
                    print(f"  layer {index + 1}: {scores}")
                    continue
                at_most.append(float((iam <= am).mean()))
                strictly.append(float((iam < am).mean()))
                orders = [kernel_order(scores, order) for order in ("ascending", "descending")]
                curves = accuracy_curve(model, layer, orders, [(x_test, y_test)])
                half = len(scores) // 2
                halves.append((curves[0, half], curves[1, half], largest_gap(curves[0], curves[1])))
                means.append(float(np.nanmean(scores)))
                print(
                    f"  layer {index + 1}: mean ARS {means[-1]:.3f} ± {error:.3f}, RS under IAM ≤ AM for "
                    f"{at_most[-1]:.2f} (< for {strictly[-1]:.2f}) of kernels, {int((response == 0).sum())} without "
                    f"response; half silenced: lowest {halves[-1][0]:.3f}, highest {halves[-1][1]:.3f}, gap "
                    f"{halves[-1][2]:.3f}"
                )
            whole[norm].append(float(np.mean(means)))
            with torch.no_grad():
                accuracy = float((model(x_test).argmax(1) == y_test[:, 0]).double().mean())
            print(
                f"batch_norm={norm} seed={seed}: test accuracy {accuracy:.3f}, mean ARS {whole[norm][-1]:.4f}, "
                f"{time.perf_counter() - begin:.0f} s",
                flush=True,
            )
        low, high, gap = np.mean(halves, axis=0)
        less = sum(lowest < highest for lowest, highest, _ in halves)
        print(f"batch_norm={norm}: RS under IAM ≤ AM: {np.mean(at_most):.3f} of kernels (<: {np.mean(strictly):.3f})")
        print(
            f"batch_norm={norm}: accuracy with the lowest half by ARS silenced {low:.3f}, with the highest {high:.3f}; "
            f"lower for the lowest in {less} of {len(halves)} layers; mean largest gap {gap:.3f}\n"
        )
    print(
        f"mean ARS without batch normalization {np.mean(whole[False]):.4f}, with {np.mean(whole[True]):.4f}: "
        f"{'lower' if np.mean(whole[True]) < np.mean(whole[False]) else 'NOT lower'} with it"
    )


if __name__ == "__main__":
    main()
