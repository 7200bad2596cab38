"""Checks of labelers: integers, one per vector, the same for the same seed."""

from __future__ import annotations

from unittest import SkipTest

import torch

from genmeasures.api import measure
from genmeasures.errors import DataError, GenmeasuresError, Undefined
from genmeasures.interfaces import FeatureLabeler, Labeler, TargetLabeler
from genmeasures.measures import DaviesBouldin
from genmeasures.testing import toys
from genmeasures.testing.statuses import assert_sound


def _points(count: int = 90) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([0.0, 30.0, 60.0, 90.0, 120.0, 150.0], dtype=torch.float64)
    return centers[torch.arange(count) % 6, None] + torch.randn(count, 4, generator=generator, dtype=torch.float64)


def _targets() -> list[torch.Tensor]:
    """Classes, masks and continuous maps, of which a labeler takes those that it is for."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(3, (12, 1), generator=generator)
    masks = torch.randint(2, (12, 1, 8, 8), generator=generator)
    maps = torch.rand(12, 1, 8, 8, generator=generator)
    return [classes, masks, maps]


def _labeled(component: TargetLabeler) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The targets that a fresh copy takes, one kind at least, and the labels it gives them."""
    labelings = []
    for targets in _targets():
        try:
            labelings.append((targets, _fitted_on(component, targets).label(targets, _size(targets))))
        except (DataError, Undefined):
            continue
    assert labelings, "it takes neither classes, nor masks, nor continuous targets"
    return labelings


def check_labels(component: Labeler) -> None:
    """Labels are int64, one for each vector, or for each position of each input."""
    if isinstance(component, FeatureLabeler):
        labels = _fitted(component, _points()).label(_points(31))
        assert labels.dtype == torch.int64, f"expected labels of type int64, got {labels.dtype}"
        assert tuple(labels.shape) == (31,), f"labels of 31 vectors are of shape {tuple(labels.shape)}"
    elif isinstance(component, TargetLabeler):
        for targets, labels in _labeled(component):
            expected = [(12, 1), (12, 16)] if targets.dim() > 2 else [(12, 1)]
            assert labels.dtype == torch.int64, f"expected labels of type int64, got {labels.dtype}"
            assert tuple(labels.shape) in expected, (
                f"expected labels of shape {expected[-1]}, got {tuple(labels.shape)}"
            )
    else:
        raise AssertionError("it is neither a TargetLabeler nor a FeatureLabeler")


def _fitted(component: FeatureLabeler, points: torch.Tensor) -> FeatureLabeler:
    fresh = component.clone()
    fresh.fit(points, torch.Generator().manual_seed(0))
    return fresh


def _fitted_on(component: TargetLabeler, targets: torch.Tensor) -> TargetLabeler:
    fresh = component.clone()
    fresh.observe(targets)
    fresh.fit(torch.Generator().manual_seed(0))
    return fresh


def _size(targets: torch.Tensor) -> tuple[int, ...]:
    """Dense targets are labeled at half their size."""
    return (4, 4) if targets.dim() > 2 else ()


def check_label_batches(component: Labeler) -> None:
    """A label does not depend on what else is in the batch."""
    if isinstance(component, FeatureLabeler):
        by_features, points = _fitted(component, _points()), _points(31)
        apart = torch.cat([by_features.label(part) for part in points.split(7)])
        assert torch.equal(by_features.label(points), apart), "labels differ in batches of 7"
    elif isinstance(component, TargetLabeler):
        for targets, labels in _labeled(component):
            by_targets = _fitted_on(component, targets)
            apart = torch.cat([by_targets.label(part, _size(targets)) for part in targets.split(5)])
            assert torch.equal(labels, apart), "labels differ in batches of 5"


def check_label_seed(component: Labeler) -> None:
    """One seed gives one labeling, and the targets or vectors are not written to."""
    if isinstance(component, FeatureLabeler):
        points = _points()
        before = points.clone()
        labelings = [_fitted(component, points).label(points) for _ in range(2)]
        assert torch.equal(points, before), "the vectors have changed"
        assert torch.equal(labelings[0], labelings[1]), "two fits with one seed give different labels"
    elif isinstance(component, TargetLabeler):
        first, second = _labeled(component), _labeled(component)
        for (targets, labels), (_, again) in zip(first, second, strict=True):
            assert any(torch.equal(targets, original) for original in _targets()), "the targets have changed"
            assert torch.equal(labels, again), "two fits with one seed give different labels"


def check_no_label(component: Labeler) -> None:
    """Where targets have no label (−1, or NaN in continuous ones) the label is −1, and elsewhere it is not."""
    if not isinstance(component, TargetLabeler):
        raise SkipTest("it does not read the targets")
    tried = 0
    for targets in _targets():
        none = torch.nan if targets.is_floating_point() else -1
        targets[0] = none
        targets[5] = none
        try:
            fitted = _fitted_on(component, targets)
            labels = fitted.label(targets, _size(targets))
        except (DataError, Undefined):
            continue
        tried += 1
        kind = f"targets {targets.dtype} {tuple(targets.shape)}"
        without, rest = labels[[0, 5]], labels[[1, 2, 3, 4, *range(6, 12)]]
        assert (without == -1).all(), f"{kind}: an input without a label is labeled {without[without != -1][0]}, not −1"
        assert (rest >= 0).all(), f"{kind}: an input with labels is labeled {int(rest.min())}"
        part = fitted.label(targets[:1], _size(targets))
        assert (part == -1).all(), f"{kind}: in a batch without any label, a label is {part[part != -1][0]}, not −1"
    assert tried, "it takes no targets of which some have no label: leave these out where it is fitted"


def check_run(component: Labeler) -> None:
    """A built-in measure that reads its labels has a value on an ordinary network."""
    (train, classes), (test, _) = toys.images(60, 1), toys.images(45, 2)
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(2, (60, 8, 8), generator=generator)
    maps = torch.rand(60, 1, 8, 8, generator=generator)
    refused = []
    for targets in (classes,) if isinstance(component, FeatureLabeler) else (classes, masks, maps):
        reading = DaviesBouldin(labeler=component.clone())
        try:
            ds = measure({"net": toys.network()}, (train, targets), test, measures=[reading], batch_size=16)
        except GenmeasuresError as error:  # not the targets that it is for
            refused.append(str(error))
            continue
        assert_sound(ds, reading.variables[0])
        return
    raise AssertionError(f"it takes neither classes, nor masks, nor continuous targets: {refused[0]}")


CHECKS = (check_labels, check_label_batches, check_label_seed, check_no_label, check_run)
