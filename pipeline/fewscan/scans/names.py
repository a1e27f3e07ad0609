"""What a file's name says: its format, its stem, and whether it holds a label."""

from __future__ import annotations

import re
from pathlib import Path

FORMATS = {
    ".seg.nrrd": "seg",
    ".nii.gz": "nifti",
    ".ome.tiff": "tiff",
    ".ome.tif": "tiff",
    ".nii": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "nrrd",
    ".mhd": "nrrd",
    ".png": "png",
    ".jpg": "png",
    ".jpeg": "png",
    ".bmp": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
}
"""The format of each suffix, longest suffix first; "seg" is 3D Slicer's segmentation, which is never a scan."""

LABEL_FOLDERS = {
    "label", "labels", "labelstr", "labelsts", "labelsval", "mask", "masks", "seg", "segs", "segmentation",
    "segmentations", "groundtruth", "ground_truth", "gt", "annotations",
}  # fmt: skip
IMAGE_FOLDERS = {"image", "images", "imagestr", "img", "imgs", "scan", "scans", "raw"}

_LABEL_WORD = r"(?:[a-z]{0,6}seg|segmentation|mask|label|gt|ground_?truth|annotation|instance|instances_id)"
_LABEL_END = re.compile(
    rf"(?:^|[_\-.\s]){_LABEL_WORD}s?(?:[_-](?:manual|auto|gt|\d+))*$|[_-]seg(?=[_-])", re.IGNORECASE
)
_LABEL_START = re.compile(r"^(?:seg|segmentation|mask|label|gt)s?(?=[\d_\-.\s]|$)[_\-.\s]?", re.IGNORECASE)
_IMAGE_END = re.compile(r"(?:^|[_\-.\s])(?:image|img|im|raw|scan)$", re.IGNORECASE)
_IMAGE_START = re.compile(r"^(?:image|img|im|raw|scan)(?=[\d_\-.\s]|$)[_\-.\s]?", re.IGNORECASE)


def suffix_of(path: Path) -> str:
    """The suffix of an image file, double ones whole (`.nii.gz`); else the last suffix, perhaps empty."""
    lower = path.name.lower()
    for suffix in FORMATS:
        if lower.endswith(suffix) and len(lower) > len(suffix):
            return path.name[-len(suffix) :]
    return path.suffix


def stem_of(path: Path) -> str:
    """The file's name without `suffix_of`."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def format_of(path: Path) -> str | None:
    """The format by the suffix, a value of FORMATS; None where the suffix says nothing."""
    return FORMATS.get(suffix_of(path).lower())


def is_label_name(path: Path) -> bool:
    """Whether the file's own name says that it holds a label (`x_seg`, `x_mask`, `x_labels`, `x_gmseg_manual`, ...)."""
    stem = stem_of(path)
    return format_of(path) == "seg" or bool(_LABEL_END.search(stem) or _LABEL_START.search(stem))


def label_key(stem: str) -> str:
    """The stem without the word that says label: `x_seg` gives `x`, `mask2d` gives `2d`, `label` gives ``."""
    return _LABEL_START.sub("", _LABEL_END.sub("", stem))


def image_key(stem: str) -> str:
    """The stem without a word that says image: `x_image` gives `x`, `img2d` gives `2d`, `raw` gives ``."""
    return _IMAGE_START.sub("", _IMAGE_END.sub("", stem))
