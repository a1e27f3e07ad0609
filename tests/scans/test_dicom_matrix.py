"""Every kind of series is read exactly, or refused with the numbers that disagree: never wrong in silence."""

import re

import highdicom
import nibabel
import numpy as np
import pytest

from fewscan.cli import main
from fewscan.errors import ScanError
from fewscan.scans import find_scans, open_scan
from runs.tiny import expected, threshold_bundle
from scans.dicom_kinds import KINDS, LPS_TO_RAS, difference

READ = [name for name, kind in KINDS.items() if not kind.refused]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]
THRESHOLDS = (1500.5, 1700.5)


def wrong(truth, scan):
    return difference(truth, scan.read()[0], LPS_TO_RAS @ scan.grid.affine)


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read_exactly(tmp_path, name):
    kind = KINDS[name]
    truths = kind.make(tmp_path / "case")
    found = find_scans(tmp_path / "case")
    assert len(found.scans) == len(truths), found.skipped
    for truth in truths:
        problems = [wrong(truth, scan) for scan in found.scans]
        assert problems.count("") == 1, problems
    for scan in found.scans:
        assert np.linalg.det((LPS_TO_RAS @ scan.grid.affine)[:3, :3]) > 0  # planes in the order of their normal
        assert re.search(kind.noted, "; ".join(scan.notes)) if kind.noted else not scan.notes
    reasons = [item.reason for item in found.skipped]
    assert all(re.search(kind.left_out, reason) for reason in reasons) if kind.left_out else not reasons
    assert bool(reasons) == bool(kind.left_out)
    if len(truths) > 1:
        with pytest.raises(ScanError, match=f"{len(truths)} volumes"):
            open_scan([tmp_path / "case"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path, name):
    kind = KINDS[name]
    kind.make(tmp_path / "case")
    refusal = f"(?s){kind.refused}"
    found = find_scans(tmp_path / "case")
    for scan in found.scans:  # what only the pixels show
        with pytest.raises(ScanError, match=refusal):
            scan.read()
    if not found.scans:
        assert any(re.search(refusal, item.reason) for item in found.skipped if item.failed), found.skipped
    with pytest.raises(ScanError, match=refusal):
        open_scan([tmp_path / "case"]).read()
