"""What MONAI Deploy's MonaiBundleInferenceOperator makes of a bundle, in an application as its users write one.

    PYTHON_WITH_MONAI_DEPLOY tests/interop/monai_deploy_runs.py BUNDLE SCAN MASK.npz [as_it_is]

SCAN is a folder with one DICOM series, which Deploy's own operators read (with `as_it_is` without our correction of the
affine), or an .npz with `array` (D, H, W) and `affine` (4 x 4, voxel (w, h, d) -> mm RAS+), handed over as an Image
with the metadata of DICOMSeriesToVolumeOperator. MASK.npz gets `mask` (D, H, W) and the `affine` that the image came
with. fewscan has to be importable there, as the bundle needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSeriesSelectorOperator,
    DICOMSeriesToVolumeOperator,
    IOMapping,
    MonaiBundleInferenceOperator,
)


class GiveImage(Operator):
    """An Image from an .npz."""

    def __init__(self, fragment: Any, file: Path) -> None:
        self.file = file
        super().__init__(fragment, CountCondition(fragment, 1), name="give")

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        scan = np.load(self.file)
        i, j, k = np.linalg.norm(scan["affine"][:3, :3], axis=0).tolist()
        spacing = {"row_pixel_spacing": j, "col_pixel_spacing": i, "depth_pixel_spacing": k}
        affine = scan["affine"]
        meta = {**spacing, "nifti_affine_transform": affine, "affine": affine, "space": "RAS"}
        op_output.emit(Image(scan["array"], meta), "image")


class SeriesToVolume(DICOMSeriesToVolumeOperator):
    """Deploy's own takes the distance of rows for that of columns, and the other way round."""

    def compute_affine_transform(self, s_1: Any, s_n: Any, n: int, series: Any) -> None:
        super().compute_affine_transform(s_1, s_n, n, series)
        rows, columns = s_1[0x0028, 0x0030].value  # PixelSpacing
        for affine in (series.dicom_affine_transform, series.nifti_affine_transform):
            affine[:3, :2] *= columns / rows, rows / columns


class KeepMask(Operator):
    """The mask, as it arrives, and the image's affine, into an .npz."""

    def __init__(self, fragment: Any, file: Path) -> None:
        self.file = file
        super().__init__(fragment, name="keep")

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("image")
        spec.input("pred")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        image, mask = op_input.receive("image"), op_input.receive("pred")
        affine = image.metadata()["nifti_affine_transform"]
        np.savez(self.file, mask=mask.asnumpy(), affine=affine)


class App(Application):
    """The scan, the bundle's mask of it, and a file to keep both."""

    def __init__(self, bundle: Path, scan: Path, mask: Path, to_volume: type[DICOMSeriesToVolumeOperator]) -> None:
        self.bundle, self.scan, self.mask, self.to_volume = bundle, scan, mask, to_volume
        super().__init__()

    def compose(self) -> None:
        context = AppContext({})
        context.models = None  # else a folder at the model path is called in place of the network
        segment = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.bundle,
            name="segment",
        )
        keep = KeepMask(self, self.mask)
        if self.scan.is_dir():
            load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=self.scan, name="load")
            select = DICOMSeriesSelectorOperator(self, name="select")
            image: Any = self.to_volume(self, name="volume")
            self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(select, image, {("study_selected_series_list", "study_selected_series_list")})
        else:
            image = GiveImage(self, self.scan)
        self.add_flow(image, segment, {("image", "image")})
        self.add_flow(image, keep, {("image", "image")})
        self.add_flow(segment, keep, {("pred", "pred")})


if __name__ == "__main__":
    operator = DICOMSeriesToVolumeOperator if sys.argv[4:] == ["as_it_is"] else SeriesToVolume
    App(*(Path(argument).resolve() for argument in sys.argv[1:4]), operator).run()
