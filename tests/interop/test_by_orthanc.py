"""A series comes from a PACS, is segmented, and its mask goes back: Orthanc, by DIMSE and by DICOMweb.

Skipped unless FEWSCAN_ORTHANC names Orthanc's program and pynetdicom and dicomweb-client are there;
`.ci/interop-orthanc` sees to all three and runs this.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)

from fewscan.cli import main
from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg import frames
from fewscan.scans import open_scan
from fewscan.scans.mask_files import read_mask
from masks.cases import GRIDS
from runs.tiny import expected, noise, threshold_bundle
from scans.dicom_series import write_series

WHY = ".ci/interop-orthanc installs it"
pynetdicom = pytest.importorskip("pynetdicom", reason=f"no pynetdicom ({WHY})")
DICOMwebClient = pytest.importorskip("dicomweb_client.api", reason=f"no dicomweb-client ({WHY})").DICOMwebClient

from pynetdicom.sop_class import (  # noqa: E402
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

GRID = GRIDS["oblique"]  # 0.9 x 0.8 x 2.5 mm
IMAGE = noise(5, GRID.shape)
TABLE = LabelTable.from_json(["left kidney", "spleen"])
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
SYNTAX = {"plain": ExplicitVRLittleEndian, "deflated": DeflatedExplicitVRLittleEndian, "labelmap": RLELossless}
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass(frozen=True)
class Pacs:
    """An Orthanc that knows AE FEWSCAN on this machine alone: its ports, and the one where FEWSCAN listens."""

    dicom: int
    http: int
    fewscan: int

    def associate(self, *contexts: tuple[str, list[str]], **more: object):
        entity = pynetdicom.AE(ae_title="FEWSCAN")
        for sop_class, syntaxes in contexts:
            for syntax in syntaxes:  # a context each: the PACS answers for each
                entity.add_requested_context(sop_class, syntax)
        return entity.associate("127.0.0.1", self.dicom, ae_title="ORTHANC", **more)

    @property
    def web(self):
        return DICOMwebClient(f"http://127.0.0.1:{self.http}/dicom-web")

    def send(self, way: str, files: list[Path], syntaxes: list[str] | None = None) -> bool:
        """Whether the PACS took the files, by C-STORE (in their transfer syntax or the `syntaxes`) or STOW-RS."""
        sets = [pydicom.dcmread(file) for file in files]
        if way == "stow":
            answer = self.web.store_instances(sets)
            return len(answer.ReferencedSOPSequence) == len(files) and not answer.get("FailedSOPSequence")
        first = sets[0]
        association = self.associate((first.SOPClassUID, syntaxes or [first.file_meta.TransferSyntaxUID]))
        if not association.is_established:
            return False
        status = {association.send_c_store(item).Status for item in sets}
        association.release()
        return status == {0}

    def fetch(self, way: str, like: Dataset, folder: Path) -> list[Path]:
        """The series of this data set, in its transfer syntax, as files named by their SOPInstanceUID."""
        folder.mkdir()
        if way == "wado":
            stored = (("application/dicom", "*"),)
            for item in self.web.retrieve_series(like.StudyInstanceUID, like.SeriesInstanceUID, media_types=stored):
                item.save_as(folder / item.SOPInstanceUID, enforce_file_format=True)
            return sorted(folder.iterdir())

        def store(event) -> int:
            (folder / event.request.AffectedSOPInstanceUID).write_bytes(event.encoded_dataset())
            return 0

        handlers, syntax = [(pynetdicom.evt.EVT_C_STORE, store)], like.file_meta.TransferSyntaxUID
        wanted = Dataset()
        wanted.QueryRetrieveLevel = "SERIES"
        wanted.StudyInstanceUID, wanted.SeriesInstanceUID = like.StudyInstanceUID, like.SeriesInstanceUID
        if way == "c-get":
            association = self.associate(
                (StudyRootQueryRetrieveInformationModelGet, [ExplicitVRLittleEndian]),
                (like.SOPClassUID, [syntax]),
                ext_neg=[pynetdicom.build_role(like.SOPClassUID, scp_role=True)],
                evt_handlers=handlers,
            )
            answers = list(association.send_c_get(wanted, StudyRootQueryRetrieveInformationModelGet))
        else:
            entity = pynetdicom.AE(ae_title="FEWSCAN")
            entity.add_supported_context(like.SOPClassUID, syntax)
            server = entity.start_server(("127.0.0.1", self.fewscan), block=False, evt_handlers=handlers)
            association = self.associate((StudyRootQueryRetrieveInformationModelMove, [ExplicitVRLittleEndian]))
            answers = list(association.send_c_move(wanted, "FEWSCAN", StudyRootQueryRetrieveInformationModelMove))
            server.shutdown()
        association.release()
        assert [status.Status for status, _ in answers if status.Status != 0xFF00] == [0]
        return sorted(folder.iterdir())

    def series(self, way: str, study: str) -> dict[str, tuple[str, str, str]]:
        """{SeriesInstanceUID: (PatientID, modality, description)} of a study, by QIDO-RS or C-FIND."""
        names = ("SeriesInstanceUID", "PatientID", "Modality", "SeriesDescription")
        if way == "qido":
            found = self.web.search_for_series(study_instance_uid=study, fields=["PatientID", "SeriesDescription"])
            sets = [Dataset.from_json(item) for item in found]
        else:
            wanted = Dataset()
            wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "SERIES", study
            for name in names:
                setattr(wanted, name, "")
            association = self.associate((StudyRootQueryRetrieveInformationModelFind, [ExplicitVRLittleEndian]))
            answers = association.send_c_find(wanted, StudyRootQueryRetrieveInformationModelFind)
            sets = [item for _, item in answers if item is not None]
            association.release()
        rows = [[str(item[name].value) for name in names] for item in sets]
        return {uid: (patient, modality, description) for uid, patient, modality, description in rows}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def orthanc(folder: Path, **settings: object) -> Iterator[Pacs]:
    """Orthanc with its storage in this folder."""
    program = os.environ.get("FEWSCAN_ORTHANC")
    if not program:
        pytest.skip("FEWSCAN_ORTHANC names no Orthanc (.ci/interop-orthanc does)")
    pacs = Pacs(free_port(), free_port(), free_port())
    known = {"AET": "FEWSCAN", "Host": "127.0.0.1", "Port": pacs.fewscan}
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomPort": pacs.dicom,
        "HttpPort": pacs.http,
        "RemoteAccessAllowed": False,
        "DicomModalities": {"fewscan": known},
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "Plugins": [str(DICOMWEB)],
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"http://127.0.0.1:{pacs.http}/system", timeout=10).raise_for_status()
                break
            assert process.poll() is None, (folder / "orthanc.log").read_text()
            time.sleep(0.1)
        yield pacs
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """As its makers ship it, but for LABELMAP: its SOP class is younger than this Orthanc."""
    with orthanc(tmp_path_factory.mktemp("pacs"), UnknownSopClassAccepted=True) as running:
        yield running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "kidneys")


def segmented(series: Path, bundle: Path, output: Path, kind: str, monkeypatch) -> Path:
    """The mask of a series by `fewscan segment`. Files of many pixels are deflated: here as if small ones were many."""
    monkeypatch.setattr(frames, "PLAIN", -1 if kind == "deflated" else 10**9)
    format = "dicom-seg-labelmap" if kind == "labelmap" else "dicom-seg"
    assert main(["segment", str(series), "--bundle", str(bundle), "--output", str(output), "--format", format]) == 0
    (path,) = output.rglob("*_seg.dcm")
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == SYNTAX[kind]
    return path


def on_the_scan(values: np.ndarray, affine_ras: np.ndarray) -> np.ndarray:
    """Values (i, j, k) of a mask, put where they lie in the scan; each within a hundredth of a voxel."""
    placed = np.zeros(GRID.shape, values.dtype)
    for index in np.argwhere(values).tolist():
        voxel = (np.linalg.inv(GRID.affine) @ affine_ras @ (*index, 1))[:3]
        assert np.abs(voxel - np.rint(voxel)).max() < 0.01
        placed[tuple(np.rint(voxel).astype(int))] = values[tuple(index)]
    return placed


def assert_holds_the_mask(path: Path, series: Path) -> None:
    """fewscan and highdicom find in the file what the thresholds say, at the places of the synthetic scan."""
    np.testing.assert_array_equal(read_mask(path, open_scan([series]), TABLE)[0], expected(IMAGE))
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    np.testing.assert_array_equal(on_the_scan(np.asarray(volume.array), ras), expected(IMAGE))


@pytest.mark.parametrize("kind", SYNTAX)
@pytest.mark.parametrize(("send", "fetch"), [("c-store", "wado"), ("stow", "c-get"), ("c-store", "c-move")])
def test_a_series_is_fetched_and_its_mask_goes_back(tmp_path, pacs, bundle, monkeypatch, kind, send, fetch):
    files = write_series(tmp_path / "modality", IMAGE, GRID.affine, shuffled=True)
    assert pacs.send(send, files)
    sources = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, files)}
    source = next(iter(sources.values()))
    fetched = pacs.fetch(fetch, source, tmp_path / "fetched")
    assert {path.name: pydicom.dcmread(path) for path in fetched} == sources

    path = segmented(tmp_path / "fetched", bundle, tmp_path / "masks", kind, monkeypatch)
    assert pacs.send(send, [path])
    seg = pydicom.dcmread(path)
    for way in ("qido", "c-find"):
        assert pacs.series(way, source.StudyInstanceUID) == {
            source.SeriesInstanceUID: (source.PatientID, "CT", "synthetic"),
            seg.SeriesInstanceUID: (source.PatientID, "SEG", "fewscan segmentation"),
        }
    for way in ("wado", "c-move") if kind == "labelmap" else ("wado", "c-move", "c-get"):  # see docs/dicom_seg.md
        (again,) = pacs.fetch(way, seg, tmp_path / way)
        returned = pydicom.dcmread(again)
        assert returned == seg  # every element but those of the file, group 2
        assert returned.PixelData == seg.PixelData
        assert returned.file_meta.TransferSyntaxUID == seg.file_meta.TransferSyntaxUID
        assert_holds_the_mask(again, tmp_path / "fetched")


@pytest.mark.parametrize("kind", ["deflated", "labelmap"])
def test_who_knows_plain_files_alone_gets_one(tmp_path, pacs, bundle, monkeypatch, kind):
    write_series(tmp_path / "ct", IMAGE, GRID.affine)
    path = segmented(tmp_path / "ct", bundle, tmp_path / "masks", kind, monkeypatch)
    assert pacs.send("stow", [path])
    seg = pydicom.dcmread(path)
    (returned,) = pacs.web.retrieve_series(seg.StudyInstanceUID, seg.SeriesInstanceUID)
    assert returned.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    returned.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    assert_holds_the_mask(tmp_path / "plain.dcm", tmp_path / "ct")
    if kind == "deflated":
        (again,) = pacs.fetch("c-get", returned, tmp_path / "again")
        assert pydicom.dcmread(again) == seg
        assert pydicom.dcmread(again).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_what_a_stricter_pacs_takes(tmp_path, bundle, monkeypatch):
    """By C-STORE neither Deflated nor a class that it does not know; plain, or by STOW-RS, all (docs/dicom_seg.md)."""
    write_series(tmp_path / "ct", IMAGE, GRID.affine)
    path = {kind: segmented(tmp_path / "ct", bundle, tmp_path / kind, kind, monkeypatch) for kind in SYNTAX}
    deflated = pydicom.dcmread(path["deflated"])
    assert pydicom.dcmread(path["labelmap"]).SOPClassUID == LABELMAP
    with orthanc(tmp_path, DeflatedTransferSyntaxAccepted=False) as strict:
        assert [strict.send("c-store", [path[kind]]) for kind in SYNTAX] == [True, False, False]
        assert strict.send("c-store", [path["deflated"]], [DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian])
        deflated.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        (again,) = strict.fetch("c-get", deflated, tmp_path / "again")
        assert pydicom.dcmread(again) == deflated
        assert_holds_the_mask(again, tmp_path / "ct")
        assert strict.send("stow", [path["labelmap"]])


def dcmtk(*command: object) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed (apt-get install dcmtk)")
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["plain", "deflated"])
@pytest.mark.parametrize("takes_deflated", [True, False])
def test_the_commands_of_the_page(tmp_path, bundle, monkeypatch, kind, takes_deflated):
    """docs/open_masks.md, with DCMTK."""
    files = write_series(tmp_path / "modality", IMAGE, GRID.affine)
    source = pydicom.dcmread(files[0])
    (tmp_path / "scans" / "ct").mkdir(parents=True)
    with orthanc(tmp_path, DeflatedTransferSyntaxAccepted=takes_deflated) as pacs:
        peer = ("-aet", "FEWSCAN", "-aec", "ORTHANC", "127.0.0.1", pacs.dicom)
        dcmtk("storescu", "-R", "+sd", *peer, tmp_path / "modality")
        study, series = (f"{name}={source[name].value}" for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        level = ("-S", "-k", "QueryRetrieveLevel=SERIES", "-k", study)
        names = ("-k", "SeriesInstanceUID", "-k", "Modality", "-k", "SeriesDescription")
        assert source.SeriesInstanceUID in dcmtk("findscu", *level, *names, *peer)
        folder = tmp_path / "scans" / "ct"
        done = dcmtk("getscu", "-v", *level, "-k", series, "-od", folder, *peer)
        assert f"Completed Suboperations : {len(files)}" in done
        path = segmented(tmp_path / "scans", bundle, tmp_path / "masks", kind, monkeypatch)
        dcmtk("storescu", "-R", *peer, path)
        seg = pydicom.dcmread(path)
        seg.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # as storescu sends it
        assert seg.SOPClassUID == SegmentationStorage and source.SOPClassUID == CTImageStorage
        (again,) = pacs.fetch("c-get", seg, tmp_path / "again")
        assert pydicom.dcmread(again) == seg
        assert_holds_the_mask(again, folder)
        assert seg.SeriesInstanceUID in dcmtk("findscu", *level, "-k", "Modality=SEG", *names[:2], *peer)
    dcmtk("dcmconv", "+te", path, tmp_path / "plain.dcm")
    assert pydicom.dcmread(tmp_path / "plain.dcm") == pydicom.dcmread(path)
    assert pydicom.dcmread(tmp_path / "plain.dcm").file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
