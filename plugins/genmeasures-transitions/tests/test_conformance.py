"""The public conformance suite, on the measures of this plugin."""

import pytest
from genmeasures_transitions import RegionCount, TransitionCount

from genmeasures.testing import parametrize_with_checks

KINDS = ("training_ellipse", "random_ellipse", "translations")


@parametrize_with_checks(
    [
        *(TransitionCount(kind, points=128, trajectories=2, curvature_points=32) for kind in KINDS),
        RegionCount(lines=2, resolution=16),
    ]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_conforms(component, check):
    check(component)
