"""What the measures read of a batch, and how they keep it."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genmeasures.plugin import (
    SPLITS,
    Component,
    FeatureBatch,
    KMeans,
    Labeler,
    Pass,
    RankSample,
    Split,
    Undefined,
    Value,
    is_count,
    one_of,
    require,
)
from genmeasures_geometry.labeled_moments import LabeledMoments
from genmeasures_geometry.moments import Moments, gram

SPACES = ("pca", "pixel")
WIDEST = 2048
"""Dimensions up to which a covariance is formed."""
_KEPT = 1 << 23
"""Elements of a subsample that is kept, at most: 32 MiB."""
_KNOWN: WeakKeyDictionary[FeatureBatch, dict[str, Moments]] = WeakKeyDictionary()
"""Moments of the batches that are alive, by space."""
_COLUMNS = 1 << 12
"""Dimensions that are converted to float64 at a time."""
_KEPT_WIDE = 1000
"""Vectors of the subsample of vectors with more dimensions than :data:`WIDEST`, at most."""


def check_space(component: Component, space: str, split: str) -> None:
    """Check the options that say which vectors are read.

    Args:
        component: the measure.
        space: its option.
        split: its option.

    Raises:
        OptionError: An option has another value.

    Example:
        >>> from genmeasures_geometry import NeuralCollapse
        >>> NeuralCollapse(space="pixels")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: NeuralCollapse: space='pixels' is unknown (did you mean 'pixel'? known: pca, \
pixel)
    """
    one_of(component, "space", space, SPACES)
    one_of(component, "split", split, SPLITS)


def check_labeler(component: Component, labeler: object) -> None:
    """Check that the option ``labeler`` is a labeler that makes one clustering, or None.

    Args:
        component: the measure.
        labeler: its option.

    Raises:
        OptionError: It is not.

    Example:
        >>> from genmeasures_geometry import NeuralCollapse
        >>> NeuralCollapse(labeler="kmeans")
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: NeuralCollapse: labeler must be a labeler, such as \
genmeasures.labelers.KMeans(), got 'kmeans'
    """
    valid = labeler is None or isinstance(labeler, Labeler)
    require(valid, component, f"labeler must be a labeler, such as genmeasures.labelers.KMeans(), got {labeler!r}")
    several = isinstance(labeler, KMeans) and labeler.repeats > 1
    require(not several, component, "the labeler must make one clustering: set repeats=1")


def check_size(component: Component, size: object) -> None:
    """Check the option ``size``, the number of vectors of a subsample.

    Args:
        component: the measure.
        size: its option.

    Raises:
        OptionError: It is not an integer ≥ 10.

    Example:
        >>> from genmeasures_geometry import Silhouette
        >>> Silhouette(size=1)
        Traceback (most recent call last):
            ...
        genmeasures.errors.OptionError: Silhouette: size must be an integer ≥ 10, got 1
    """
    require(is_count(size, 10), component, f"size must be an integer ≥ 10, got {size!r}")


def pass_over(split: Split, space: str, labels: bool = False) -> Pass:
    """The pass that reads the vectors of a space.

    Args:
        split: "train" or "test".
        space: "pca" or "pixel".
        labels: whether labels are read too.

    Example:
        >>> pass_over("train", "pca") == Pass("train", "projected")
        True
    """
    if labels:
        return Pass(split, "projected" if space == "pca" else "vectors", "labels")
    return Pass(split, "projected" if space == "pca" else "vectors")


def read(batch: FeatureBatch, space: str) -> Tensor:
    """The vectors of a batch, float64 (n, d) or float32 (n, k).

    Args:
        batch: the batch.
        space: "pca" or "pixel".

    Example:
        >>> from unittest.mock import Mock
        >>> read(Mock(vectors=torch.zeros(2, 3)), "pixel").shape
        torch.Size([2, 3])
    """
    return batch.projected if space == "pca" else batch.vectors


def moments_of(batch: FeatureBatch, space: str) -> Moments:
    """The moments of the vectors of a batch, computed once for all measures that read them.

    Args:
        batch: the batch.
        space: "pca" or "pixel".

    Example:
        >>> from unittest.mock import Mock
        >>> batch = Mock(vectors=torch.ones(2, 3))
        >>> moments_of(batch, "pixel") is moments_of(batch, "pixel")
        True
    """
    known = _KNOWN.setdefault(batch, {})
    if space not in known:
        known[space] = Moments.of(read(batch, space))
    return known[space]


def coordinates(vectors: Tensor) -> Tensor:
    """Few long vectors in a basis of the space that they span.

    The basis is that of the centered vectors, from their products, and of what their mean has outside of it.

    Args:
        vectors: float32 or float64 (n, k).

    Returns:
        float64 (n, r), r ≤ n, with the same products.

    Example:
        >>> long = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
        >>> short = coordinates(long)
        >>> short.shape, (short @ short.T).round(decimals=6).tolist()
        (torch.Size([2, 2]), [[25.0, 0.0], [0.0, 4.0]])
    """
    mean = vectors.mean(0, dtype=torch.float64)
    products = mean.new_zeros(len(vectors), len(vectors))
    along = mean.new_zeros(len(vectors))
    for start in range(0, vectors.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        centered = vectors[:, part].double() - mean[part]
        products += gram(centered.T)
        along += centered @ mean[part]
    values, left = torch.linalg.eigh(products)
    kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
    roots, left = values[kept].sqrt(), left[:, kept]
    inside = along @ left / roots
    outside = (mean @ mean - inside @ inside).clamp(min=0).sqrt()
    return torch.cat([left * roots + inside, outside.expand(len(vectors), 1)], 1)


def salt_of(generator: torch.Generator) -> int:
    """A random number to draw a subsample by.

    Example:
        >>> salt_of(torch.Generator().manual_seed(0)) == salt_of(torch.Generator().manual_seed(0))
        True
    """
    return int(torch.randint(2**62, (1,), generator=generator, device=generator.device))


def defined(compute: Callable[[], float], note: str = "") -> float | Value | Undefined:
    """The value with a note, or the reason why there is none.

    Args:
        compute: computes the value, or raises Undefined.
        note: remark for the status of the value, "" for none.

    Example:
        >>> defined(lambda: 1.0), defined(lambda: 1.0, "few vectors")
        (1.0, Value(value=1.0, note='few vectors'))
    """
    try:
        return Value(compute(), note) if note else compute()
    except Undefined as reason:
        return reason


class Subsample:
    """Some vectors, the same ones in any order of batches, and fewer of them if they are long.

    Args:
        size: number of vectors, at most.
        salt: random number that the draw depends on.

    Example:
        >>> sample = Subsample(3, salt=0)
        >>> for rank in torch.arange(8).split(4):
        ...     sample.add(rank[:, None].float(), rank)
        >>> len(sample.result()[0]), sample.note
        (3, '')
    """

    def __init__(self, size: int, salt: int) -> None:
        self._size = size
        self._salt = salt
        self._sample: RankSample | None = None
        self._seen = self._length = 0
        self._most = size

    def add(self, vectors: Tensor, rank: Tensor, *more: Tensor) -> None:
        """Offer vectors.

        Args:
            vectors: (n, k).
            rank: int64 (n,), their ranks in the sample of the run.
            more: (n,) each, what else is kept of them.
        """
        if self._sample is None:
            self._length = vectors.shape[1]
            self._most = max(1, min(self._size, _KEPT // max(1, self._length)))
            self._sample = RankSample(self._most, self._salt)
        rows = self._sample.chosen(rank)
        self._seen += len(rank)
        if len(rows):
            self._sample.add(rank[rows], vectors[rows].clone(), *(one[rows] for one in more))

    def result(self) -> tuple[Tensor, ...]:
        """The vectors, and what else is kept of them, in an order that depends on their ranks alone.

        Raises:
            Undefined: There are none.
        """
        kept = self._sample.result() if self._sample is not None else ()
        if not kept:
            raise Undefined("no vectors in the sample")
        return kept

    @property
    def note(self) -> str:
        """A remark for the status if fewer vectors are kept than asked for, since they are long."""
        return self.drawn if self._most < self._size else ""

    @property
    def drawn(self) -> str:
        """A remark if not all vectors are kept."""
        if self._seen <= self._most:
            return ""
        return f"a subsample of {self._most} of {self._seen} vectors, since they have {self._length} dimensions"


class StreamedMoments:
    """Moments of vectors with or without labels, streamed; of a subsample if the covariance would be too large.

    Vectors with more than 2,048 dimensions are written in a basis of the space that a subsample of at most 1,000 spans:
    that changes neither singular values nor products.

    Args:
        salt: random number that the subsample depends on.

    Example:
        >>> from unittest.mock import Mock
        >>> batch = Mock(vectors=torch.tensor([[0.0], [2.0]]), rank=torch.tensor([0, 1]))
        >>> streamed = StreamedMoments(salt=0)
        >>> streamed.add(batch, "pixel", torch.tensor([5, 6]))
        >>> streamed.total().mean.tolist(), streamed.labeled().classes.labels().tolist()
        ([1.0], [5, 6])
    """

    def __init__(self, salt: int) -> None:
        self._subsample = Subsample(_KEPT_WIDE, salt)
        self._moments = LabeledMoments()
        self._wide = False

    def add(self, batch: FeatureBatch, space: str, labels: Tensor | None = None) -> None:
        """Add the vectors of a batch.

        Args:
            batch: the batch.
            space: "pca" or "pixel".
            labels: int64 (n,), or None for vectors without.
        """
        vectors = read(batch, space)
        self._wide = vectors.shape[1] > WIDEST
        if self._wide:
            self._subsample.add(vectors, batch.rank, *(() if labels is None else (labels,)))
        elif labels is None:
            self._moments.total.merge(moments_of(batch, space))
        else:
            self._moments.add(vectors, labels, moments_of(batch, space))

    def labeled(self) -> LabeledMoments:
        """The moments, with those of the classes.

        Raises:
            Undefined: There are no vectors, or they are not finite.
        """
        if not self._wide:
            return self._moments
        vectors, *labels = self._subsample.result()
        if not bool(vectors.isfinite().all()):
            raise Undefined("the features are not finite")
        points = coordinates(vectors)
        moments = LabeledMoments()
        moments.total.add(points)
        moments.total.dimension = vectors.shape[1]
        if labels:
            moments.classes.add(points, labels[0])
        return moments

    def total(self) -> Moments:
        """The moments of all vectors.

        Raises:
            Undefined: There are no vectors, or they are not finite.
        """
        return self.labeled().total

    @property
    def note(self) -> str:
        """A remark for the status if the moments are those of a subsample."""
        return self._subsample.drawn
