"""SaveImaged with our writer writes what `write_mask` writes, under the name of the scan in its folder."""

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImaged

from fewscan.masks import write_mask
from fewscan.masks.dicom_seg.binary import check
from fewscan.scans import find_scans
from masks.cases import GRIDS, TABLE, dicom_scan, mask, nifti_scan, picture_scan

SAVER = {
    "_target_": "SaveImaged",
    "keys": "pred",
    "output_dir": "@output_dir",
    "output_postfix": "seg",
    "output_ext": "",
    "data_root_dir": ".",
    "separate_folder": False,
    "resample": False,
    "print_log": False,
    "output_name_formatter": {"_target_": "fewscan.masks.MaskName", "data_root": "@dataset_dir"},
    "writer": {"_target_": "fewscan.masks.MaskWriter", "_mode_": "callable", "labels": "@labels"},
}


def save(folder, output, files, values, channels=None, **changes):
    """Load as a bundle does, take `values` for the prediction, save as a bundle does."""
    saver = {**SAVER, **changes}
    saver["output_name_formatter"] = {**SAVER["output_name_formatter"], "channels": channels}
    parser = ConfigParser(
        {
            "saver": saver,
            "labels": TABLE.to_json(),
            "dataset_dir": str(folder),
            "output_dir": str(output),
        }
    )
    loaded = LoadImaged("image", reader="fewscan.scans.ScanReader", channels=channels)({"image": files})
    loaded["pred"] = MetaTensor(
        torch.as_tensor(values if values.ndim == 4 else values[None]), meta=loaded["image"].meta
    )
    Compose([parser.get_parsed_content("saver")])(loaded)
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def test_nifti_below_folders_and_with_dots_in_its_name(tmp_path):
    (tmp_path / "data" / "sub-01" / "anat").mkdir(parents=True)
    scan = nifti_scan(tmp_path / "data" / "sub-01" / "anat", GRIDS["oblique"])
    path = scan.files[0].rename(scan.files[0].with_name("T1.5mm.nii.gz"))
    names = save(tmp_path / "data", tmp_path / "out", str(path), mask())
    assert names == ["sub-01/anat/T1.5mm_seg.ctbl", "sub-01/anat/T1.5mm_seg.nii.gz"]
    found = nibabel.load(tmp_path / "out" / names[1])
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), mask())
    np.testing.assert_array_equal(found.affine, nibabel.load(path).affine)
    (again,) = find_scans(tmp_path / "data").scans
    other, _ = write_mask(mask(), again, TABLE, tmp_path / "direct_seg", "nifti")
    assert other.read_bytes() == (tmp_path / "out" / names[1]).read_bytes()


def test_dicom_becomes_a_seg_named_by_its_folder(tmp_path):
    scan = dicom_scan(tmp_path / "data" / "case" / "t1", GRIDS["oblique"])
    names = save(tmp_path / "data", tmp_path / "out", str(scan.files[0].parent), mask())
    (found,) = find_scans(tmp_path / "data").scans
    assert names == [f"{found.name}_seg.dcm"]
    check(tmp_path / "out" / names[0], mask(), found, TABLE)
    assert pydicom.dcmread(tmp_path / "out" / names[0]).Modality == "SEG"


def test_png_stays_png(tmp_path):
    (tmp_path / "data").mkdir()
    picture_scan(tmp_path / "data", ".png")
    values = mask()[:, :, 1:2]
    for array, output in ((values, "a"), (values[:, :, 0], "b")):  # a 2D network's output may have no k axis
        names = save(tmp_path / "data", tmp_path / output, str(tmp_path / "data" / "scan.png"), array)
        assert names == ["scan_seg.png"]
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / output / names[0])))
        np.testing.assert_array_equal(found.T, values[:, :, 0])


def test_the_suffix_chooses_the_format(tmp_path):
    (tmp_path / "data").mkdir()
    scan = nifti_scan(tmp_path / "data", GRIDS["reversed"])
    names = save(tmp_path / "data", tmp_path / "out", str(scan.files[0]), mask(), output_ext=".seg.nrrd")
    assert names == ["scan_seg.seg.nrrd"]


def test_several_channels_and_wrong_values_are_refused(tmp_path):
    (tmp_path / "data").mkdir()
    scan = nifti_scan(tmp_path / "data", GRIDS["reversed"])
    two = np.stack([mask(), mask()])
    for array, changes, words in (
        (np.full_like(mask(), 9), {}, "9, which the label table does not list"),
        (mask(), {"resample": True}, "set resample to false"),
        (two, {}, "one channel of label values"),
        (np.swapaxes(mask(), 0, 1), {}, "not (1, 6, 9, 7)"),
    ):
        with pytest.raises(RuntimeError) as caught:
            save(tmp_path / "data", tmp_path / "out", str(scan.files[0]), array, **changes)
        assert words in str(caught.value.__cause__)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_channels_of_a_case_give_one_mask_with_the_name_of_the_case(tmp_path):
    (tmp_path / "data" / "sub-01").mkdir(parents=True)
    first = nifti_scan(tmp_path / "data" / "sub-01", GRIDS["oblique"]).files[0]
    files = [first.with_name("case_T1.nii.gz"), first.with_name("case_FLAIR.nii.gz")]
    files[1].write_bytes(first.read_bytes())
    first.rename(files[0])
    channels = [{"name": "T1", "suffix": "_T1"}, {"name": "FLAIR", "suffix": "_FLAIR"}]
    names = save(tmp_path / "data", tmp_path / "out", [str(file) for file in files], mask(), channels)
    assert names == ["sub-01/case_seg.ctbl", "sub-01/case_seg.nii.gz"]


def test_after_batches_and_decollation_each_mask_has_its_own_name_and_place(tmp_path):
    files = []
    for name in ("oblique", "reversed"):
        (tmp_path / "data" / name).mkdir(parents=True)
        files.append({"image": str(nifti_scan(tmp_path / "data" / name, GRIDS[name]).files[0])})
    config = {"saver": SAVER, "labels": TABLE.to_json(), "dataset_dir": str(tmp_path / "data")}
    config["output_dir"] = str(tmp_path / "out")
    saver = ConfigParser(config).get_parsed_content("saver")
    load = LoadImaged("image", reader="fewscan.scans.ScanReader")
    for batch in DataLoader(Dataset(files, load), batch_size=1):
        batch["pred"] = (batch["image"] == 900) * 5  # the bright corner
        for item in decollate_batch(batch):
            saver(item)
    for name in ("oblique", "reversed"):
        found = nibabel.load(tmp_path / "out" / name / "scan_seg.nii.gz")
        np.testing.assert_allclose(found.affine, GRIDS[name].affine, atol=1e-5)
        assert np.argwhere(found.get_fdata()).tolist() == [[0, 0, 0]] and found.get_fdata()[0, 0, 0] == 5
