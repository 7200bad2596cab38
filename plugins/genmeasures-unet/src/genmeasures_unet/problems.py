"""What a UNet is to learn from volumes: which target, by which objective, and how well it does on a whole volume."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genmeasures.plugin import DataError
from genmeasures_unet import scores
from genmeasures_unet.assembly import classes, probabilities
from genmeasures_unet.objectives import OBJECTIVES, regression_error
from genmeasures_unet.patches import PatchSampler
from genmeasures_unet.volumes import Case

Target = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True)
class Problem(abc.ABC):
    """A kind of target, with one way to train for it; the same for all cases."""

    @property
    @abc.abstractmethod
    def hparams(self) -> Mapping[str, str | int | float]:
        """What tells it from the others of its kind."""

    @abc.abstractmethod
    def given(self, case: Case) -> tuple[NDArray[np.float32], Target]:
        """What the network is given of a case, (C, *S), and what it is to make of it, (*S) or (C, *S)."""

    @abc.abstractmethod
    def sampler(self, cases: Sequence[Case], patch: tuple[int, ...]) -> PatchSampler:
        """Draws patches of what is given and of the targets."""

    def training_cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        """Those of the training cases that are learnt from."""
        return cases

    @abc.abstractmethod
    def out_channels(self, cases: Sequence[Case]) -> int:
        """Channels of the network's output."""

    @property
    @abc.abstractmethod
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Objective of outputs (B, C, *S) and targets."""

    @property
    @abc.abstractmethod
    def output(self) -> Callable[[Tensor], Tensor]:
        """From the network's output to what is blended where patches overlap."""

    @abc.abstractmethod
    def score(self, assembled: Tensor, target: Target) -> dict[str, float]:
        """How good the assembled prediction of a whole volume (C, *S) is, the metric that counts first."""


@dataclass(frozen=True)
class Segmentation(Problem):
    """Mask from image; ``objective`` is one of :data:`OBJECTIVES`, of which IoU and Dice are the scores."""

    objective: str
    classes: int
    """Number of classes, the background included."""

    @property
    def hparams(self) -> Mapping[str, str | int | float]:
        return {"objective": self.objective}

    def given(self, case: Case) -> tuple[NDArray[np.float32], Target]:
        return case.image, mask_of(case)

    def sampler(self, cases: Sequence[Case], patch: tuple[int, ...]) -> PatchSampler:
        return PatchSampler(cases, patch)

    def out_channels(self, cases: Sequence[Case]) -> int:
        return 1 if self.classes == 2 else self.classes

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return OBJECTIVES[self.objective]

    @property
    def output(self) -> Callable[[Tensor], Tensor]:
        return probabilities

    def score(self, assembled: Tensor, target: Target) -> dict[str, float]:
        predicted = classes(assembled).numpy()
        return {
            "iou": scores.iou(predicted, target, self.classes),
            "dice": scores.dice(predicted, target, self.classes),
        }


@dataclass(frozen=True)
class Denoising(Problem):
    """Image from the image with Gaussian noise, by mean square error; R² and SSIM are the scores.

    The noise of a case is drawn once from its name, so that it is the same on each reading: a network
    that sees few cases for long can learn it by heart.
    """

    noise: float
    """Standard deviation, in that of the image."""
    train_cases: int
    """Number of training cases that are learnt from."""

    @property
    def hparams(self) -> Mapping[str, str | int | float]:
        return {"train_cases": self.train_cases}

    def given(self, case: Case) -> tuple[NDArray[np.float32], Target]:
        generator = np.random.default_rng(zlib.crc32(case.name.encode()))
        noise = generator.standard_normal(case.image.shape, dtype=np.float32)
        return case.image + np.float32(self.noise) * noise, case.image

    def sampler(self, cases: Sequence[Case], patch: tuple[int, ...]) -> PatchSampler:
        noisy, targets = zip(*(self.given(case) for case in cases), strict=True)
        # No foreground: every position of a volume is as good as any other.
        blank = [
            replace(case, image=image, mask=np.zeros(image.shape[1:], dtype=np.int64))
            for case, image in zip(cases, noisy, strict=True)
        ]
        return PatchSampler(blank, patch, targets)

    def training_cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        return cases[: self.train_cases]

    def out_channels(self, cases: Sequence[Case]) -> int:
        return len(cases[0].image)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return regression_error

    @property
    def output(self) -> Callable[[Tensor], Tensor]:
        return lambda values: values

    def score(self, assembled: Tensor, target: Target) -> dict[str, float]:
        predicted: NDArray[Any] = assembled.numpy()
        similar = [
            scores.ssim(mine, true, float(np.ptp(true)))
            for mine, true in zip(predicted, target, strict=True)
            if np.ptp(true) > 0
        ]
        return {"r2": scores.r2(predicted, target), "ssim": float(np.mean(similar))}


def mask_of(case: Case) -> NDArray[np.int64]:
    """The case's mask; raises DataError naming the case where there is none."""
    if case.mask is None:
        raise DataError(f"case {case.name} has no mask: segmentation needs one of every case")
    return case.mask


__all__ = ["Denoising", "Problem", "Segmentation", "Target", "mask_of"]
