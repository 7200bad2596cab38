"""Learning problems of UNets on volumes: target, objective and scores of segmentation and denoising."""

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
    """A learning problem: inputs and targets of the cases, with the objective and the scores."""

    @property
    @abc.abstractmethod
    def hparams(self) -> Mapping[str, str | int | float]:
        """Hyperparameters in which the problems of one task differ."""

    @abc.abstractmethod
    def example(self, case: Case) -> tuple[NDArray[np.float32], Target]:
        """Input of a case, float32 (C, ``*S``), and its target (``*S``) or (C, ``*S``)."""

    @abc.abstractmethod
    def sampler(self, cases: Sequence[Case], patch: tuple[int, ...]) -> PatchSampler:
        """Sampler of patches of the inputs and targets."""

    def training_cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        """The training cases that the network learns from."""
        return cases

    @abc.abstractmethod
    def out_channels(self, cases: Sequence[Case]) -> int:
        """Number of output channels of the network."""

    @property
    @abc.abstractmethod
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Objective as a function of outputs (B, C, ``*S``) and targets."""

    @property
    @abc.abstractmethod
    def output(self) -> Callable[[Tensor], Tensor]:
        """Function that maps outputs to the values that are blended where patches overlap."""

    @abc.abstractmethod
    def score(self, assembled: Tensor, target: Target) -> dict[str, float]:
        """Scores of the assembled prediction of a volume (C, ``*S``), with the metric of the task first."""


@dataclass(frozen=True)
class Segmentation(Problem):
    """Segmentation by one of the :data:`OBJECTIVES`, scored by IoU and Dice."""

    objective: str
    classes: int
    """Number of classes, including the background."""
    train_cases: int | None = None
    """Number of training cases that the network learns from; None for all."""

    @property
    def hparams(self) -> Mapping[str, str | int | float]:
        number: dict[str, int] = {} if self.train_cases is None else {"train_cases": self.train_cases}
        return {"objective": self.objective, **number}

    def training_cases(self, cases: Sequence[Case]) -> Sequence[Case]:
        return cases[: self.train_cases]

    def example(self, case: Case) -> tuple[NDArray[np.float32], Target]:
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
    """Denoising of images with Gaussian noise by mean square error, scored by R² and SSIM.

    The noise of a case is seeded by its name, so that it is the same whenever the case is read: a network that is
    trained on few cases for long can memorize it.
    """

    noise: float
    """Standard deviation of the noise, in units of the standard deviation of the image."""
    train_cases: int
    """Number of training cases that the network learns from."""

    @property
    def hparams(self) -> Mapping[str, str | int | float]:
        return {"train_cases": self.train_cases}

    def example(self, case: Case) -> tuple[NDArray[np.float32], Target]:
        generator = np.random.default_rng(zlib.crc32(case.name.encode()))
        noise = generator.standard_normal(case.image.shape, dtype=np.float32)
        return case.image + np.float32(self.noise) * noise, case.image

    def sampler(self, cases: Sequence[Case], patch: tuple[int, ...]) -> PatchSampler:
        noisy, targets = zip(*(self.example(case) for case in cases), strict=True)
        # Masks without foreground: all positions are equally likely.
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
    """Return the mask of a case.

    Raises:
        DataError: the case has no mask.

    Example:
        >>> mask_of(Case("brain", np.zeros((1, 2, 2), dtype=np.float32), np.array([[0, 1], [0, 0]])))
        array([[0, 1],
               [0, 0]])
    """
    if case.mask is None:
        raise DataError(f"case {case.name} has no mask: segmentation needs one for each case")
    return case.mask


__all__ = ["Denoising", "Problem", "Segmentation", "Target", "mask_of"]
