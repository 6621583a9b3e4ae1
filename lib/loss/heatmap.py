"""Losses on heatmaps: Simple Baselines (Xiao et al., ECCV 2018), used for the 2D pretraining."""

from torch import Tensor

from lib.errors import GeometryError


def heatmap_mse(
    pred: Tensor,  # (B, J, h, w)
    target: Tensor,  # (B, J, h, w)
    weight: Tensor | None = None,  # (B, J), 0 = joint not annotated
) -> Tensor:  # ()
    """Mean over joints of half the mean squared error between weighted heatmaps, 0.5 * MSE(w pred, w target).

    Joints without annotation count in the denominator, as in the published training.

    Raises:
        GeometryError: shapes of pred and target differ, or weight is not (B, J).
    """
    if pred.shape != target.shape or pred.ndim != 4:
        raise GeometryError(
            f"heatmap loss: pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}; "
            "expected the same (B, J, h, w)"
        )
    error = pred.float() - target.float() if pred.itemsize < 4 else pred - target.to(pred.dtype)
    if weight is None:
        return 0.5 * error.square().mean()
    if weight.shape != pred.shape[:2]:
        raise GeometryError(f"heatmap loss: weight has shape {tuple(weight.shape)}, expected {tuple(pred.shape[:2])}")
    # Weighting the mean of each map instead of every cell saves a full-size tensor: MSE(w p, w t) = w^2 MSE(p, t).
    return 0.5 * (error.square().mean(dim=(2, 3)) * weight.square()).mean()
