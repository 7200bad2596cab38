"""The public conformance suite, on the measure of this plugin along each of its trajectories."""

import pytest
from genmeasures_transitions import TransitionCount

from genmeasures.testing import parametrize_with_checks

KINDS = ("training_ellipse", "random_ellipse", "translations")


@parametrize_with_checks([TransitionCount(kind, points=128, trajectories=2, curvature_points=32) for kind in KINDS])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_conforms(component, check):
    check(component)
