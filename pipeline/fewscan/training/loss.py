"""What training minimises: weighted cross-entropy, and Dice, both over the voxels that are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewscan.errors import BundleError


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Image and target of a batch on a device, for `SupervisedTrainer(prepare_batch=...)`.

    The target is the label, (N, 1, *spatial) class indices. Where the batch holds a `weight` of that shape, it is
    the second channel of the target, which is float then.
    """
    where: dict[str, Any] = {"device": device, "non_blocking": non_blocking, **kwargs}
    image, label = batch["image"].to(**where), batch["label"].to(**where)
    if "weight" not in batch:
        return image, label
    return image, torch.cat([label.float(), batch["weight"].to(**where).float()], dim=1)


class SegmentationLoss(nn.Module):
    """Weighted cross-entropy plus Dice (soft, mean over the foreground classes), both over labelled voxels only.

    Logits (N, classes, *spatial) and a target (N, 1 or 2, *spatial) -> a scalar. The target's first channel holds
    class indices, -1 where unknown; its second, if it has one, the weights w(x) (see `prepare_batch`). Cross-entropy is
    the sum over voxels of w(x) c(label) (-log p(label)), divided by the sum of w(x) c(label), with c the class weights:
    neither of them changes the size of a step. Dice knows no weights. Unknown voxels have no influence and no gradient;
    without any labelled voxel the loss is 0. Where the network answers less than it reads (valid convolutions), the
    centre of the target counts.

    A list of logits, as a U-Net with deep supervision answers while it trains, gives the mean of their losses, each
    weighing half as much as the one before.

    Args:
        class_weights: for each class, the background first, 0 or more; None for 1 each.
    """

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if class_weights is not None and (min(class_weights) < 0 or max(class_weights) <= 0):
            raise BundleError(f"class_weights have to be 0 or more, and one above 0; not {list(class_weights)}")
        self.class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)

    def forward(self, logits: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        target = target.as_subclass(Tensor)
        classes = target[:, 0].long()
        weight = target[:, 1].float() if target.shape[1] > 1 else torch.ones_like(classes, dtype=torch.float32)
        if isinstance(logits, Tensor):
            return self._of_one(logits, classes, weight)
        shares = [0.5**number for number in range(len(logits))]
        losses = [share * self._of_one(answer, classes, weight) for share, answer in zip(shares, logits, strict=True)]
        return torch.stack(losses).sum() / sum(shares)

    def _of_one(self, logits: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
        """Of one answer, with class indices and weights (N, *spatial)."""
        logits = logits.as_subclass(Tensor).float()
        for axis in range(1, classes.ndim):
            size = logits.shape[axis + 1]
            first = (classes.shape[axis] - size) // 2
            classes, weight = classes.narrow(axis, first, size), weight.narrow(axis, first, size)
        known = classes >= 0
        if not known.any():
            return logits.sum() * 0
        weight = torch.where(known, weight * self._of_classes(logits)[classes.clamp(min=0)], 0)
        surprise = nn.functional.cross_entropy(logits, classes, ignore_index=-1, reduction="none")
        cross_entropy = (weight * surprise).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny)
        mask = known[:, None].float()
        truth = nn.functional.one_hot(classes.clamp(min=0), logits.shape[1]).movedim(-1, 1) * mask
        probability = torch.softmax(logits, dim=1) * mask
        axes = (0, *range(2, logits.ndim))
        overlap = (probability * truth).sum(axes)[1:]
        size_of_both = (probability + truth).sum(axes)[1:]
        return cross_entropy + 1 - ((2 * overlap + 1) / (size_of_both + 1)).mean()

    def _of_classes(self, logits: Tensor) -> Tensor:
        """(classes,) weights, on the logits' device."""
        if self.class_weights is None:
            return logits.new_ones(logits.shape[1])
        if len(self.class_weights) != logits.shape[1]:
            raise BundleError(
                f"class_weights lists {len(self.class_weights)} numbers, but the network answers {logits.shape[1]} "
                "classes, the background among them; give one for each, or null"
            )
        return logits.new_tensor(self.class_weights)
