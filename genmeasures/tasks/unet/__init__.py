"""Residual UNets trained on volumes: segmentation, and regression from image to image."""

from genmeasures.tasks.unet.task import UNetDenoising, UNetSegmentation

__all__ = ["UNetDenoising", "UNetSegmentation"]
