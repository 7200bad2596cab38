"""Tasks: sets of trained models with the data they were trained and tested on."""

from genmeasures.tasks.checkpoints import Checkpoints
from genmeasures.tasks.digits_cnn import DigitsCNN
from genmeasures.tasks.unet import UNetDenoising, UNetSegmentation

__all__ = ["Checkpoints", "DigitsCNN", "UNetDenoising", "UNetSegmentation"]
