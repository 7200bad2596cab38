"""scikit-learn's hand-written digits: a fixed test part, and nested, partly mislabeled training sets."""

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
    """All 1797 digits as (train, test): 1197 in a fixed random order and 600, each class in proportion."""
    # scikit-learn takes seconds to import, and the processes that train do not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, np.newaxis]
    y = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=TEST_SIZE, random_state=_SEED, stratify=y)
    # Copies, because indexing leaves the single channel a stride by which torch takes it to come last and
    # convolves by other kernels; arrays sent to another process do not keep it, and would round differently.
    return (x_train.copy(), y_train), (x_test.copy(), y_test)


def training_set(train: Arrays, size: int, label_noise: float) -> Arrays:
    """The first ``size`` digits of ``train``, a share ``label_noise`` of them with a wrong label.

    Which digits are mislabeled first, and as what, is drawn once for all of ``train``; so sets of one
    size differ in as few labels as their noise allows.
    """
    x, y = train[0][:size], train[1][:size].copy()
    generator = np.random.default_rng(_SEED)
    turn = generator.permutation(len(train[1]))[:size]
    shift = generator.integers(1, CLASSES, len(train[1]))[:size]
    wrong = np.argsort(turn)[: round(label_noise * size)]
    y[wrong] = (y[wrong] + shift[wrong]) % CLASSES
    return x, y
