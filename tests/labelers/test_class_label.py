"""The class of the input, for every vector made from it."""

from __future__ import annotations

import pytest
import torch

from genmeasures.errors import DataError
from genmeasures.labelers import ClassLabel


@pytest.mark.parametrize("spatial", [(), (3,), (4, 5)])
def test_one_label_stands_for_all_positions(spatial: tuple[int, ...]) -> None:
    targets = torch.tensor([[3], [0], [7]])
    assert torch.equal(ClassLabel().label(targets, spatial), targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(3, 1), "histogram"),
        (torch.zeros(3, 1, 4, 4, dtype=torch.int64), "downsampled"),
        (torch.zeros(3, 2, dtype=torch.int64), r"\(2,\)"),
    ],
)
def test_other_targets_are_refused_with_the_labeler_that_takes_them(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassLabel().label(targets, (4, 4))


def test_no_label_stays_none() -> None:
    assert ClassLabel().label(torch.tensor([[3], [-1]]), (4, 5)).tolist() == [[3], [-1]]
