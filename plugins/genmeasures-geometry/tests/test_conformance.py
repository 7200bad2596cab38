"""The public conformance suite, on the measures of this plugin."""

import pytest
from genmeasures_geometry import (
    ClassSeparation,
    FeatureSpectrum,
    IntrinsicDimension,
    NeuralCollapse,
    Silhouette,
    SplitShift,
    Transferability,
)

from genmeasures.testing import parametrize_with_checks


@parametrize_with_checks(
    [
        NeuralCollapse(),
        NeuralCollapse(space="pca", split="test"),
        Silhouette(size=100),
        FeatureSpectrum(),
        IntrinsicDimension(size=100, neighbors=5),
        Transferability(),
        Transferability(space="pca"),
        ClassSeparation(),
        ClassSeparation(space="pixel", covariance="diagonal", split="test"),
        SplitShift(size=100),
        SplitShift(space="pixel"),
    ]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_conforms(component, check):
    check(component)
