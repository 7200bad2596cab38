"""Handwritten digits of scikit-learn: a fixed test split, and nested training sets with label noise."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Images float32 (N, 1, 8, 8) from 0 to 1, and labels int64 (N,) from 0 to 9."""

TEST_SIZE = 600
CLASSES = 10
_SEED = 0


def split_digits() -> tuple[Arrays, Arrays]:
    """Split the 1797 digits into a training and a test split, stratified by class.

    Returns:
        Training split (1197 digits, in a fixed random order) and test split (600 digits), each as images float32
        (N, 1, 8, 8) with values from 0 to 1, and labels int64 (N,).

    Example:
        >>> train, test = split_digits()
        >>> train[0].shape, test[1].shape
        ((1197, 1, 8, 8), (600,))
    """
    # scikit-learn takes seconds to import, and the training processes do not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    y = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=TEST_SIZE, random_state=_SEED, stratify=y)
    # Copies: after indexing, torch takes the stride of the single channel for channels_last and convolves by other
    # kernels. Arrays that are sent to another process lose that stride, and would round differently.
    return (x_train.copy(), y_train), (x_test.copy(), y_test)


def training_set(train: Arrays, size: int, label_noise: float) -> Arrays:
    """The first digits of a training split, a fraction of them with wrong labels.

    The order in which digits are mislabeled, and their wrong labels, are drawn once for the whole split, so that sets
    of one size differ in as few labels as their noise permits.

    Args:
        train: images and labels, as of :func:`split_digits`.
        size: number of digits.
        label_noise: fraction of wrong labels, from 0 to 1.

    Returns:
        Images float32 (size, 1, 8, 8) and labels int64 (size,).

    Example:
        >>> train, _ = split_digits()
        >>> _, labels = training_set(train, 100, 0.2)
        >>> int((labels != train[1][:100]).sum())
        20
    """
    x, y = train[0][:size], train[1][:size].copy()
    generator = np.random.default_rng(_SEED)
    turn = generator.permutation(len(train[1]))[:size]
    shift = generator.integers(1, CLASSES, len(train[1]))[:size]
    wrong = np.argsort(turn)[: round(label_noise * size)]
    y[wrong] = (y[wrong] + shift[wrong]) % CLASSES
    return x, y
