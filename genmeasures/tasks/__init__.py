"""Tasks: sets of trained models with the data they were trained and tested on."""

from genmeasures.tasks.checkpoints import Checkpoints
from genmeasures.tasks.digits_cnn import DigitsCNN

__all__ = ["Checkpoints", "DigitsCNN"]
