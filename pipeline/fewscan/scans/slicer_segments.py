"""3D Slicer's `.seg.nrrd` read: each segment is one value in one layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fewscan.errors import LabelError, ScanError
from fewscan.scans.nrrd import grid_from_itk, itk_image, itk_reader
from fewscan.scans.segments import Part, Segment

_TERMINOLOGY = re.compile(r"TerminologyEntry:([^|]*)")


def is_slicers(path: Path) -> bool:
    """Whether an NRRD names segments. Raises ScanError where it is none."""
    return any(key.startswith("Segment0_") for key in itk_reader(path).GetMetaDataKeys())


def read_slicer_segments(path: Path) -> Iterator[Part]:
    """The segments of a file, those without voxels too; its layers are the numbers of a voxel.

    The space origin is the centre of the first stored voxel, also where 3D Slicer cropped the file. Raises ScanError
    where the file is broken, LabelError where a voxel has a value that no segment has.
    """
    import SimpleITK

    image = itk_image(path)
    if image.GetDimension() != 3:
        raise ScanError(f"{path}: {image.GetDimension()}-D, where 3D Slicer writes 3-D layers")
    grid = grid_from_itk(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    layers = SimpleITK.GetArrayFromImage(image)
    layers = layers if image.GetNumberOfComponentsPerPixel() > 1 else layers[..., None]
    layers = layers.transpose(3, 2, 1, 0)  # (layer, i, j, k)
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    claimed: dict[int, set[int]] = {layer: {0} for layer in range(len(layers))}
    for number in itertools.count():
        if f"Segment{number}_ID" not in header and f"Segment{number}_Name" not in header:
            break
        segment, value, layer = _segment(header, number, path, len(layers))
        claimed[layer].add(value)
        yield Part(segment, layers[layer] == value, grid)
    for layer, values in claimed.items():
        strangers = sorted(set(np.unique(layers[layer]).tolist()) - values)
        if strangers:
            raise LabelError(f"{path}: layer {layer} holds the value {strangers[0]:g}, which no segment of it names")


def _segment(header: Mapping[str, str], number: int, path: Path, layers: int) -> tuple[Segment, int, int]:
    """A segment, its value and its layer; before Slicer 4.11 segments had neither, but a layer of 0 and 1 each."""
    try:
        layer = int(header.get(f"Segment{number}_Layer", number))
        value = int(header.get(f"Segment{number}_LabelValue", 1))
    except ValueError:
        raise ScanError(f"{path}: Layer or LabelValue of segment {number} is no number") from None
    if not 0 <= layer < layers:
        raise ScanError(f"{path}: segment {number} lies in layer {layer}, the file has {layers}")
    entry = _TERMINOLOGY.search(header.get(f"Segment{number}_Tags", ""))
    codes = entry[1].split("~") if entry else []
    type_code, modifier = (_triple(codes[at]) if len(codes) > at else None for at in (2, 3))
    return Segment(header.get(f"Segment{number}_Name"), value, type_code, modifier), value, layer


def _triple(text: str) -> tuple[str, str] | None:
    """(scheme, value) of Slicer's `SCT^64033007^Kidney`."""
    fields = text.split("^")
    return (fields[0], fields[1]) if len(fields) == 3 and fields[0] and fields[1] else None
