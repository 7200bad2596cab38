"""The public conformance suite, on every measure of this plugin."""

from genmeasures_ars import ARS, ClassSelectivity, CumulativeAblation

from genmeasures.testing import parametrize_with_checks


@parametrize_with_checks(
    [ARS(steps=4, starts=2, keep_images=True), ClassSelectivity(), CumulativeAblation(ClassSelectivity())]
)
def test_conforms(component, check):
    check(component)
