"""What training minimises: cross-entropy and Dice over the voxels that are labelled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SegmentationLoss(nn.Module):
    """Cross-entropy plus Dice (soft, mean over the foreground classes), both over labelled voxels only.

    Logits (N, classes, *spatial) and class indices (N, 1, *spatial), where -1 means unknown -> a scalar. Unknown
    voxels have no influence and no gradient; without any labelled voxel the loss is 0. Where the network answers
    less than it reads (valid convolutions), the centre of the label counts.

    A list of logits, as a U-Net with deep supervision answers while it trains, gives the mean of their losses, each
    weighing half as much as the one before.
    """

    def forward(self, logits: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        if isinstance(logits, Tensor):
            return self._of_one(logits, label)
        weights = [0.5**number for number in range(len(logits))]
        losses = [weight * self._of_one(answer, label) for weight, answer in zip(weights, logits, strict=True)]
        return torch.stack(losses).sum() / sum(weights)

    def _of_one(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = logits.as_subclass(Tensor).float()
        classes = label.as_subclass(Tensor)[:, 0].long()
        for axis in range(1, classes.ndim):
            lost = classes.shape[axis] - logits.shape[axis + 1]
            classes = classes.narrow(axis, lost // 2, logits.shape[axis + 1])
        known = classes >= 0
        if not known.any():
            return logits.sum() * 0
        cross_entropy = nn.functional.cross_entropy(logits, classes, ignore_index=-1)
        mask = known[:, None].float()
        truth = nn.functional.one_hot(classes.clamp(min=0), logits.shape[1]).movedim(-1, 1) * mask
        probability = torch.softmax(logits, dim=1) * mask
        axes = (0, *range(2, logits.ndim))
        overlap = (probability * truth).sum(axes)[1:]
        size = (probability + truth).sum(axes)[1:]
        return cross_entropy + 1 - ((2 * overlap + 1) / (size + 1)).mean()
