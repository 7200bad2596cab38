"""The public conformance suite, on the measures of this plugin."""

import pytest
from genmeasures_outputs import Calibration, OutputConfidence, OutputDistribution, OutputMargin

from genmeasures.testing import parametrize_with_checks


@parametrize_with_checks(
    [
        OutputMargin(),
        OutputMargin(split="validation", size=100),
        OutputConfidence(),
        OutputConfidence(split="train", temperature=2.0),
        Calibration(),
        Calibration(split="validation", bins=5),
        OutputDistribution(),
        OutputDistribution(split="train", order=2.0, normalization="softmax", temperature=3.0, centered=True),
    ]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_conforms(component, check):
    check(component)
