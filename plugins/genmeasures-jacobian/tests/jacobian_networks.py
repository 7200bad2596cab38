"""Small networks and data for the tests of this plugin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genmeasures.plugin import ModelData
from genmeasures.testing import model_data


def linear(weight: Tensor) -> nn.Module:
    """f(x) = W x."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer.eval()


def convolutional(classes: int = 5) -> nn.Module:
    """Two convolutions with batch normalization and pooling, activations in place; for inputs (2, 6, 6)."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(72, classes),
    ).eval()


def dense(classes: int = 3) -> nn.Module:
    """A network with an output at every position."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, classes, 3, padding=1)).eval()


def images(count: int = 12, size: int = 6) -> Tensor:
    """float32 (count, 2, size, size)."""
    return torch.randn(count, 2, size, size, generator=torch.Generator().manual_seed(3))


def data_of(inputs: Tensor, targets: Tensor | None = None, batch: int = 5, seed: int = 0) -> ModelData:
    """Test and training data alike; a sample is the last ones, backward."""
    return model_data(inputs, targets, batch_size=batch, seed=seed, order=range(len(inputs))[::-1])


def centered_squares(gradients: Tensor) -> Tensor:
    """Σ_j ‖g_j − ḡ‖², float64 (N,), of the gradients (N, n, d) of n logits, pair by pair: Σ_{i<j} ‖g_i − g_j‖²/n."""
    count = gradients.shape[1]
    pairs = [(gradients[:, i] - gradients[:, j]).square().sum(1) for i in range(count) for j in range(i)]
    return torch.stack(pairs).sum(0) / count


def jacobians(model: nn.Module, inputs: Tensor, softmax: bool) -> Tensor:
    """float64 (N, outputs, d), by torch.autograd.functional in double precision."""
    double = model.double()

    def output(one: Tensor) -> Tensor:
        made: Tensor = double(one[None])[0]
        return (made.softmax(0) if softmax else made).flatten()

    made = [torch.autograd.functional.jacobian(output, one).flatten(1) for one in inputs.double()]
    model.float()
    return torch.stack(made)
