"""How far apart the distributions of classes are."""

from __future__ import annotations

import torch
from torch import Tensor

from genmeasures.plugin import Undefined
from genmeasures_geometry.labeled_moments import ClassMoments
from genmeasures_geometry.moments import Moments

COVARIANCES = ("full", "diagonal", "spherical")


def coding_rate(moments: Moments, distortion: float, center: Tensor | None = None) -> float:
    """Coding rate ½ log det(I + D/(nε²) ZᵀZ) of vectors Z (n, D), in nats.

    Source: Yu et al. 2020.

    Args:
        moments: moments of the vectors.
        distortion: ε > 0.
        center: float64 (D,), what is subtracted from the vectors; None takes their mean.

    Example:
        >>> round(coding_rate(Moments.of(torch.tensor([[-1.0], [1.0]])), distortion=1.0), 6)  # ½ log 2
        0.346574
    """
    shift = moments.mean - (moments.mean if center is None else center)
    scatter = moments.scatter + moments.count * torch.outer(shift, shift)
    eigenvalues = torch.linalg.eigvalsh(scatter).clamp(min=0)
    return 0.5 * float(torch.log1p(moments.dimension / (moments.count * distortion**2) * eigenvalues).sum())


def trans_rate(classes: ClassMoments, distortion: float = 0.01) -> float:
    """TransRate R(Z) − Σ_c (n_c/n) R(Z_c), R the coding rate of vectors about the mean of all of them.

    Classes are weighed by their size; 1/K, as in code that circulates, is the same only if they are equally large, and
    can be negative. The code printed in the source has 1/(nε) for D/(nε²), with ε = 1e-4.

    Source: Huang et al. 2022.

    Args:
        classes: moments of the vectors of each class.
        distortion: ε > 0.

    Returns:
        At least 0, which it is for classes with the same mean and covariance.

    Raises:
        Undefined: There is a single class, or the vectors are equal or not finite.

    Example:
        >>> vectors, labels = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> trans_rate(ClassMoments.of(vectors, labels))
        0.0
    """
    total = _checked(classes)
    whole = coding_rate(total, distortion)
    parts = sum(part.count / total.count * coding_rate(part, distortion, total.mean) for part in classes.parts())
    return max(0.0, whole - parts)


def bhattacharyya(classes: ClassMoments, covariance: str = "full") -> float:
    """GBC: −Σ_{i≠j} exp(−D_B(i, j)) over ordered pairs of classes, D_B the Bhattacharyya distance of Gaussians.

    Source: Pándy et al. 2022.

    Args:
        classes: moments of the vectors of each class.
        covariance: "full"; "diagonal", of independent dimensions; or "spherical", with the mean of their variances.

    Returns:
        From −K(K − 1), for equal classes, to 0.

    Raises:
        Undefined: There is a single class, or a class has a singular covariance.

    Example:
        >>> vectors, labels = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> bhattacharyya(ClassMoments.of(vectors, labels))
        -2.0
    """
    _, axes = _checked(classes).axes()
    parts = classes.parts()
    for part in parts:
        part.check()
    means = torch.stack([part.mean for part in parts])
    means = means - means.mean(0)
    covariances = torch.stack([part.scatter / (part.count - 1) for part in parts])
    if covariance == "full":
        # Directions without any variance tell no classes apart.
        means, covariances = means @ axes, axes.T @ covariances @ axes
        return -_overlaps(means, covariances)
    variances = covariances.diagonal(dim1=1, dim2=2)
    if covariance == "diagonal":
        used = variances.amax(0) > 0
        means, variances = means[:, used], variances[:, used]
    else:
        variances = variances.mean(1, keepdim=True).expand_as(variances)
    if not bool((variances > 0).all()):
        raise Undefined("a class has no variance, which makes its Gaussian singular")
    return -_diagonal_overlaps(means, variances)


def _overlaps(means: Tensor, covariances: Tensor) -> float:
    """Σ_{i≠j} exp(−D_B) for means (K, k) and covariances (K, k, k)."""
    spread = torch.linalg.eigvalsh(covariances)
    if not bool((spread[:, 0] > len(spread[0]) * torch.finfo(torch.float64).eps * spread[:, -1]).all()):
        raise Undefined("the covariance of a class is singular: use covariance=spherical, or fewer dimensions")
    logs = spread.log().sum(1)
    total = 0.0
    for index in range(len(means) - 1):
        pooled = (covariances[index] + covariances[index + 1 :]) / 2
        shift = means[index + 1 :] - means[index]
        factor = torch.linalg.cholesky(pooled)
        solved = torch.linalg.solve_triangular(factor, shift[:, :, None], upper=False)
        log_pooled = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        distance = solved.square().sum((1, 2)) / 8 + (log_pooled - (logs[index] + logs[index + 1 :]) / 2) / 2
        total += 2 * float(torch.exp(-distance).sum())
    return total


def _diagonal_overlaps(means: Tensor, variances: Tensor) -> float:
    """The same for variances (K, k) of independent dimensions."""
    total = 0.0
    for index in range(len(means) - 1):
        pooled = (variances[index] + variances[index + 1 :]) / 2
        shift = (means[index + 1 :] - means[index]).square()
        logs = pooled.log() - (variances[index].log() + variances[index + 1 :].log()) / 2
        distance = (shift / pooled).sum(1) / 8 + logs.sum(1) / 2
        total += 2 * float(torch.exp(-distance).sum())
    return total


def _checked(classes: ClassMoments) -> Moments:
    """The moments of all vectors; raises Undefined unless there are two classes with different finite vectors."""
    total = classes.total()
    total.check_spread()
    if len(classes) < 2:
        raise Undefined(f"expected at least 2 classes in the sample, got {len(classes)}")
    return total
