"""Class selectivity by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from genmeasures_ars import ClassMeans, class_selectivity

from genmeasures.plugin import Undefined


def test_by_hand() -> None:
    means = np.array([[4.0, 1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0, -1.0], [3.0, 1.0, 0.0, 0.0, 1.0]])
    values = class_selectivity(means)
    np.testing.assert_allclose(values[:2], [(4 - 2) / (4 + 2), 0.0])
    assert values[3] == 1
    assert np.isnan(values[[2, 4]]).all()


def test_one_class_is_no_comparison() -> None:
    with pytest.raises(Undefined, match="classes"):
        class_selectivity(np.ones((1, 3)))


def test_class_means_do_not_depend_on_batches() -> None:
    maps = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 5, 5, 2] * 3)
    whole, parts = ClassMeans(), ClassMeans()
    whole.add(maps, classes)
    for some, these in zip(maps.split(5), classes.split(5), strict=True):
        parts.add(some, these)
    np.testing.assert_allclose(whole.result(), parts.result())
    np.testing.assert_allclose(whole.result()[1], maps[classes == 2].mean(dim=(0, 2, 3)).numpy(), rtol=1e-5)


def test_inputs_without_a_label_are_of_no_class() -> None:
    maps = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, -1, 5, 2] * 3)
    some, known = ClassMeans(), ClassMeans()
    some.add(maps, classes)
    known.add(maps[classes >= 0], classes[classes >= 0])
    np.testing.assert_array_equal(some.result(), known.result())
    none = ClassMeans()
    none.add(maps, torch.full((12,), -1))
    with pytest.raises(Undefined, match="no inputs with a label"):
        none.result()
