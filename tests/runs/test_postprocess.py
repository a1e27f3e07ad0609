"""Pieces of labels against SciPy; they are removed only where out-of-fold masks gain by it."""

import json

import numpy as np
import pytest
import scipy.ndimage

from fewscan.errors import LabelError
from fewscan.labels import LabelTable
from fewscan.pieces import keep_pieces
from fewscan.runs.postprocess import dice_after, judge, small_piece_mm3, write_accepted
from runs.tiny import noise, read, save_nifti, threshold_bundle

FULL = np.ones((3, 3, 3))
TABLE = LabelTable.from_json([{"name": "kidney", "value": 4}, {"name": "spleen", "value": 9}])


def by_scipy(classes, keep_largest=(), minimum=0):
    result = classes.copy()
    for label in range(1, classes.max() + 1):
        pieces, count = scipy.ndimage.label(classes == label, FULL)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        for piece in range(1, count + 1):
            largest = piece == 1 + sizes[1:].argmax()
            if sizes[piece] < minimum or (label in keep_largest and not largest):
                result[pieces == piece] = 0
    return result


@pytest.mark.parametrize(("keep", "minimum"), [((), 0), ((1,), 0), ((1, 2), 0), ((), 4), ((2,), 3)])
def test_pieces_are_scipys(keep, minimum):
    classes = np.random.default_rng(3).choice(3, size=(14, 12, 9), p=(0.86, 0.08, 0.06)).astype(np.uint8)
    before = classes.copy()
    found = keep_pieces(classes, keep, minimum)
    np.testing.assert_array_equal(found, by_scipy(classes, keep, minimum))
    np.testing.assert_array_equal(classes, before)
    assert found.dtype == classes.dtype
    assert (found is classes) == (not keep and not minimum)


def test_half_the_fifth_percentile_of_the_truths_own_pieces():
    truth = np.zeros((40, 9, 3), np.uint16)
    for number in range(9):
        truth[2 * number, : number + 1, 0] = 1 + number % 2  # 1 to 9 voxels
    assert small_piece_mm3(truth, 2.5) == pytest.approx(np.percentile(range(1, 10), 5) / 2 * 2.5)
    assert small_piece_mm3(truth * 0, 2.5) is None


def test_dice_after_each_candidate():
    """A cube of 27 with a crumb of 1 and a false piece of 8: Dice 54/63, 1 without both, 54/62 without the crumb."""
    truth = np.zeros((12, 12, 12), np.uint16)
    truth[1:4, 1:4, 1:4] = 1
    answer = truth.copy()
    answer[6, 6, 6], answer[8:10, 8:10, 8:10] = 1, 1
    after = dice_after(answer, truth, TABLE, 2.0, 8.0)
    assert after == pytest.approx({"largest 4": 1, "largest 9": 54 / 63, "minimum size": 54 / 62})
    assert set(dice_after(answer, truth, TABLE, 2.0, 1.0)) == {"largest 4", "largest 9"}


def cases(gains, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"group": str(n), "dice": 0.7, "after": {"largest 4": 0.7 + gain, "largest 9": 0.7 + random.normal(0, 0.01)}}
        for n, gain in enumerate(gains)
    ]


def test_only_a_sure_gain_is_accepted():
    judged = {one["name"]: one for one in judge(cases([0.02, 0.01, 0.03, 0.02, 0.01, 0.05, 0.02, 0.01]))}
    assert judged["largest 4"]["accepted"] and judged["largest 4"]["gain"] == pytest.approx(0.02125)
    assert judged["largest 4"]["p"] == 2 / 2**8
    assert not judged["largest 9"]["accepted"]
    assert not any(one["accepted"] for one in judge(cases([-0.02] * 8)))  # sure, but a loss
    assert not any(one["accepted"] for one in judge(cases([0.05] * 5)))  # five groups cannot be sure
    assert not any(one["accepted"] for one in judge(cases([0.0] * 8)))


def test_cases_of_one_group_are_one_pair():
    many = [{**case, "group": case["group"][0]} for case in cases([0.02] * 40)]
    assert len({case["group"] for case in many}) == 9 + 1
    assert judge(many)[0]["p"] == 2 / 2**10


def test_what_was_accepted_decides_masks(tmp_path):
    """Thresholds on noise give crumbs; with the setting one piece of label 1 is left, as SciPy finds it."""
    from fewscan.runs.segment import segment

    bundle = threshold_bundle(tmp_path / "bundle", thresholds=(900.5, 960.5))
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    segment(tmp_path / "scans", bundle, tmp_path / "before", overlays=False)
    judged = [{"name": "largest 1", "gain": 0.02, "p": 0.001, "accepted": True}]
    judged.append({"name": "minimum size", "gain": 0.01, "p": 0.001, "accepted": True})
    told = write_accepted(bundle, judged, 2 * 0.9 * 0.8 * 2.5)
    assert "largest 1 +0.020 Dice (p 0.001), minimum size +0.010" in told
    segment(tmp_path / "scans", bundle, tmp_path / "after", overlays=False)
    before, after = (read(tmp_path / when / "a_seg.nii.gz") for when in ("before", "after"))
    np.testing.assert_array_equal(after, by_scipy(before, (1,), 2))
    assert (before != after).any()
    assert "stays as inference.json has it (as the folds suggest)" in write_accepted(bundle, judged, 3.6)
    assert "not as" in write_accepted(bundle, judged[:1], 3.6)


def test_without_a_gain_nothing_is_written(tmp_path):
    bundle = threshold_bundle(tmp_path / "bundle")
    file = bundle / "configs" / "inference.json"
    before = file.read_text()
    assert "no post-processing" in write_accepted(bundle, judge(cases([0.05] * 3)), 5.0)
    assert file.read_text() == before


def test_a_label_that_is_not_in_the_table_is_refused(tmp_path):
    from fewscan.runs.predictor import Predictor

    bundle = threshold_bundle(tmp_path / "bundle")
    file = bundle / "configs" / "inference.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "keep_largest": [7]}))
    with pytest.raises(LabelError, match="keep_largest: holds the label value"):
        Predictor(bundle, "cpu")
