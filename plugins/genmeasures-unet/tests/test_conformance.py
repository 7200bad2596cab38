"""The tasks of this plugin pass the conformance suite."""

from __future__ import annotations

from typing import Any

from genmeasures_unet import UNetDenoising, UNetSegmentation

from genmeasures.testing import parametrize_with_checks


@parametrize_with_checks([UNetSegmentation(), UNetDenoising()])
def test_conforms(component: Any, check: Any) -> None:
    check(component)
