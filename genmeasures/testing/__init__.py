"""Conformance suite for components, and inputs for their tests.

In a test module of a plugin::

    from genmeasures.testing import parametrize_with_checks

    @parametrize_with_checks([MyMeasure()])
    def test_conforms(component, check):
        check(component)

A check raises AssertionError with what the component did. A check that does not apply to the component is skipped,
with the reason. ``genmeasures check NAME`` runs the same checks on an installed component.
"""

from genmeasures.testing.inputs import layers_of, model_data
from genmeasures.testing.suite import Check, Checked, checks_for, parametrize_with_checks, run_checks

__all__ = ["Check", "Checked", "checks_for", "layers_of", "model_data", "parametrize_with_checks", "run_checks"]
