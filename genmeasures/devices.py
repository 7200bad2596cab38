"""Check of the devices that users name."""

from __future__ import annotations

import torch

from genmeasures.errors import OptionError


def usable_device(device: str | torch.device) -> torch.device:
    """The torch device of an option, after a check that a tensor can be created on it.

    Args:
        device: name of a device, such as "cpu" or "cuda:1".

    Returns:
        The device.

    Raises:
        OptionError: torch does not know the device, or this machine does not have it.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return checked


__all__ = ["usable_device"]
