"""Residual UNets trained on volumes (Rajagopal et al. 2021), as genmeasures tasks: segmentation and denoising."""

from __future__ import annotations

from genmeasures.plugin import Register, hookimpl
from genmeasures_unet.network import ResidualUNet
from genmeasures_unet.task import UNetDenoising, UNetSegmentation

__all__ = ["ResidualUNet", "UNetDenoising", "UNetSegmentation"]


@hookimpl
def genmeasures_register(register: Register) -> None:
    """Register the tasks."""
    register(UNetSegmentation)
    register(UNetDenoising)


@hookimpl
def genmeasures_config_packages() -> list[str]:
    """Name the package of the configs."""
    return ["genmeasures_unet.conf"]
