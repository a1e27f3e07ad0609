"""How good a segmentation is. Each score has one name and one formula; its docstring says which.

`overlap` counts voxels, `surface` measures mm, `isbi2012` and `cell_tracking` score as the two challenges do.
"""

from fewscan.metrics.cell_tracking import seg
from fewscan.metrics.isbi2012 import Agreement, Isbi2012, score_isbi2012
from fewscan.metrics.overlap import confusion, dice, iou, mean_iou, pixel_accuracy
from fewscan.metrics.surface import hausdorff95_mm, surface_dice

__all__ = [
    "Agreement",
    "Isbi2012",
    "confusion",
    "dice",
    "hausdorff95_mm",
    "iou",
    "mean_iou",
    "pixel_accuracy",
    "score_isbi2012",
    "seg",
    "surface_dice",
]
