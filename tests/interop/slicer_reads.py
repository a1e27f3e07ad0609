"""What 3D Slicer's own code makes of a mask: names, colours, codes, and where every voxel lies, as JSON.

    PYTHON_WITH_SLICER_CORE tests/interop/slicer_reads.py MASK [COLOURS.ctbl]

MASK is a `.seg.nrrd`, a `.nii.gz` (then the colour table may follow, as a user chooses it when loading), or a folder
with what dcmqi's `segimage2itkimage --mergeSegments` made of a DICOM-SEG. Runs where `slicer-core` is installed, and
has no need of fewscan. Printed is a list of {name, colour (0 to 1), terminology, voxels (x, y, z in mm, RAS+)}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer_core as slicer
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkCommonCore import reference
from vtkmodules.vtkCommonMath import vtkMatrix4x4


def from_file(scene: Any, mask: Path, colours: Path | None) -> Any:
    """The segmentation node that "Add data" makes of a file."""
    table = None
    if colours is not None:
        colour_logic = slicer.vtkMRMLColorLogic()
        colour_logic.SetMRMLScene(scene)
        table = colour_logic.LoadColorFile(str(colours))
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    return logic.LoadSegmentationFromFile(str(mask), True, mask.name, table)


def from_dcmqi(scene: Any, folder: Path) -> Any:
    """The segmentation node that the DICOM plugin makes of dcmqi's output.

    As there, labels become segments in the order of their values, and take name and colour in the order of the
    description: a description with a segment more than the label map would name them wrongly.
    """
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation = node.GetSegmentation()
    groups = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
    for number, group in enumerate(groups, start=1):
        before = segmentation.GetNumberOfSegments()
        labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(folder / f"{number}.nrrd"))
        storage.SetSingleFile(True)
        if not storage.ReadData(labels):
            raise OSError(f"3D Slicer cannot read {number}.nrrd")
        slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
        for place in range(before, segmentation.GetNumberOfSegments()):
            said, segment = group[place - before], segmentation.GetNthSegment(place)
            segment.SetName(said["SegmentLabel"])
            segment.SetColor([channel / 255 for channel in said["recommendedDisplayRGBValue"]])
            segment.SetTag(segment.GetTerminologyEntryTagName(), "~".join(["dcmqi", *codes(said), "", "^^", "^^"]))
    return node


def codes(said: dict[str, Any]) -> list[str]:
    """Category, type and modifier, as 3D Slicer spells them."""
    found = [said.get(f"SegmentedProperty{what}CodeSequence") for what in ("Category", "Type", "TypeModifier")]
    keys = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    return ["^".join(code[key] for key in keys) if code else "^^" for code in found]


def described(segment: Any) -> dict[str, Any]:
    """Name, colour, terminology and voxels of a segment."""
    terminology = reference("")
    segment.GetTag(segment.GetTerminologyEntryTagName(), terminology)
    image = segment.GetRepresentation("Binary labelmap")
    first, last = np.reshape(image.GetExtent(), (3, 2)).T
    shape = last - first + 1
    if shape.min() < 1:
        places = np.empty((0, 3))
    else:
        values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape[::-1]).T
        matrix = vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        affine = np.reshape([matrix.GetElement(row, column) for row in range(3) for column in range(4)], (3, 4))
        index = np.argwhere(values == segment.GetLabelValue()) + first
        places = index @ affine[:, :3].T + affine[:, 3]
    return {
        "name": segment.GetName(),
        "colour": segment.GetColor(),
        "terminology": str(terminology),
        "voxels": places.tolist(),
    }


def main() -> None:
    mask, *colours = map(Path, sys.argv[1:])
    scene = slicer.vtkMRMLScene()
    node = from_dcmqi(scene, mask) if mask.is_dir() else from_file(scene, mask, *(colours or [None]))
    segmentation = node.GetSegmentation()
    segments = [segmentation.GetNthSegment(number) for number in range(segmentation.GetNumberOfSegments())]
    print(json.dumps([described(segment) for segment in segments]))


if __name__ == "__main__":
    main()
