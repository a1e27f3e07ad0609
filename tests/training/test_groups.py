"""What has to stay together: patients of DICOM files, of which no ID is kept, and the user's own table."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.fileset import FileSet

from fewscan.errors import PairingError
from fewscan.runs.folds import make_folds
from fewscan.scans import Case
from fewscan.scans.patients import patient_numbers
from fewscan.training.split import group_cases, join_groups, read_groups, split
from runs.tiny import noise
from scans.dicom_series import write_series
from scans.volumes import AFFINES


def named(*names):
    return [Case(name, (Path("data") / f"{name}.nii.gz",)) for name in names]


def test_series_of_one_patient_stay_together_without_their_id(tmp_path):
    cases = []
    for number, patient in enumerate(("SMITH-1", "JONES-2", "SMITH-1", "")):
        folder = tmp_path / f"series{number}"
        write_series(folder, noise(number), AFFINES["oblique"], PatientID=patient)
        cases.append(Case(f"series{number}", (folder,)))
    cases.append(Case("other", (tmp_path / "other.nii.gz",)))
    groups, how = group_cases(cases)
    assert groups[0] == groups[2] == "patient 1" and groups[1] == "patient 2" and len(set(groups)) == 4
    assert "by the patient of the DICOM files" in how
    assert not any(word in f"{groups}{how}" for word in ("SMITH", "JONES"))
    assert patient_numbers([case.image[0] for case in cases]) == [1, 2, 1, None, None]


def test_slices_stay_together_whose_file_alone_calls_them_so():
    """A pattern `slice_*` names the cases by what its star stands for."""
    slices = [Case(f"{number:02}", (Path("data") / f"slice_{number:02}.png",)) for number in range(4)]
    deeper = [Case(f"{p}/{number:02}", (Path(f"data/{p}/frame{number:02}.png"),)) for p in "ab" for number in (1, 2)]
    single = [Case(patient, (Path(f"data/{patient}/frame01.nii.gz"),)) for patient in ("p1", "p2", "p3")]
    assert group_cases(single) == (["p1", "p2", "p3"], "each case by itself")
    assert len(set(group_cases(slices)[0])) == 1
    groups, how = group_cases(deeper)
    assert groups[0] == groups[1] != groups[2] == groups[3] and how == "by the name without the slice's number"


def test_a_table_may_name_files_as_they_are_called(tmp_path):
    slices = [Case(f"{number:02}", (Path("data") / f"slice_{number:02}.png",)) for number in range(2)]
    (tmp_path / "groups.csv").write_text("case,group\nslice_00,a\n01,b\n")
    assert group_cases(slices, read_groups(tmp_path / "groups.csv"))[0] == ["group 1", "group 2"]


def test_a_patient_is_known_from_whatever_file_names_him(tmp_path):
    """Not from the first one alone: a disc begins with its DICOMDIR, a bad copy with a file cut short."""
    for number, name in enumerate(("disc", "cut")):
        write_series(tmp_path / name, noise(number), AFFINES["lps"], PatientID="N-1")
    disc = FileSet()
    for path in (tmp_path / "disc").iterdir():
        disc.add(path)
    disc.write(tmp_path / "with a DICOMDIR")
    first = tmp_path / "cut" / "image000.dcm"
    first.write_bytes(first.read_bytes()[:200])
    assert patient_numbers([tmp_path / "with a DICOMDIR", tmp_path / "cut", tmp_path / "disc"]) == [1, 1, 1]


def test_a_patient_of_dicom_and_of_bids_is_one(tmp_path):
    """One `sub-XX` under two IDs, one ID under two `sub-XX`, and a NIfTI beside the DICOM of its `sub-XX`."""
    cases = []
    for number, (place, patient) in enumerate(
        (("sub-01/ses-1", "A"), ("sub-01/ses-2", "B"), ("sub-02/ses-1", "C"), ("sub-03/ses-1", "C"), ("sub-04", "D"))
    ):
        write_series(tmp_path / place / "dcm", noise(number), AFFINES["oblique"], PatientID=patient)
        cases.append(Case(place, (tmp_path / place / "dcm",)))
    cases.append(Case("sub-04/t1", (tmp_path / "sub-04" / "t1.nii.gz",)))
    groups, how = group_cases(cases)
    first, second, third, fourth, fifth, sixth = groups
    assert first == second and third == fourth and fifth == sixth and len(set(groups)) == 3
    assert how == "by the patient of the DICOM files, by the patient, sub-XX"


def test_copies_are_never_trained_on_and_held_out():
    cases = named(*"abcdefghij")
    for seed in range(10):
        training, held_out, why = split(cases, 2, seed, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)])
        assert {case.name for case in held_out} in [set(pair) for pair in ("ab", "cd", "ef", "gh", "ij")]
        assert len(training) == 8 and "near-identical images stay together" in why


def test_the_table_goes_before_names_and_keeps_no_name_of_a_group(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text(
        "\ufeffgroup;case\nMs Smith;a\nMr Jones;b\nMs Smith;c.nii.gz\nMs Smith;not there\n", encoding="utf-8"
    )
    groups, how = group_cases(named("a", "b", "sub-01/c"), read_groups(file))
    assert groups == ["group 1", "group 2", "group 1"] and how == "as --groups says"
    with pytest.raises(PairingError, match=r"says nothing of the case d \(d\.nii\.gz\)"):
        group_cases(named("a", "d"), read_groups(file))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("scan,patient\na,1\n", "has the columns scan, patient; it needs `case` and `group`"),
        ("case,group\na,1\na,2\n", "line 3 gives the case 'a' no group, or a second one"),
        ("case,group\na,\n", "line 2 gives the case 'a' no group"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path, text, words):
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(PairingError, match=words.replace("(", r"\(")):
        read_groups(tmp_path / "groups.csv")


def test_a_table_in_another_encoding_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "groups.csv").write_bytes("case,group\na,M\u00fcller\n".encode("latin-1"))
    with pytest.raises(PairingError, match="save it as CSV in UTF-8"):
        read_groups(tmp_path / "groups.csv")


def test_copies_join_their_groups():
    assert join_groups(["a", "b", "c", "d", "b"], [(0, 1), (2, 3)]) == ["a", "a", "c", "c", "a"]
    assert join_groups(["a", "b", "c"], [(0, 1), (1, 2)]) == ["a", "a", "a"]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40),
    st.none() | st.integers(2, 8),
    st.booleans(),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=4),
)
@settings(deadline=None)
def test_folds_never_share_a_group_and_test_each_case_once(of_case, count, in_order, seed, copies):
    groups = join_groups([str(g) for g in of_case], [(a % len(of_case), b % len(of_case)) for a, b in copies])
    cases = named(*(f"case{number}" for number in range(len(groups))))
    group = {case.name: own for case, own in zip(cases, groups, strict=True)}
    different = len(set(groups))
    if different < 2 or (count or 2) > different:
        with pytest.raises(PairingError):
            make_folds(cases, Path("data"), count, (), seed, (groups, "test"), in_order)
        return
    folds, how = make_folds(cases, Path("data"), count, (), seed, (groups, "test"), in_order)
    assert len(folds) == (count or min(5, different))
    assert how.startswith("leave one out") == (len(folds) == different)
    for fold in folds:
        assert not {group[case.name] for case in fold.training} & {group[case.name] for case in fold.test}
        assert fold.training and fold.test
        assert in_order or len(fold.training) + len(fold.test) == len(cases)
    assert sorted(case.name for fold in folds for case in fold.test) == sorted(group)
    if in_order:  # runs of groups in the order in which they first appear
        order = list(dict.fromkeys(groups))
        tested = [sorted({order.index(group[case.name]) for case in fold.test}) for fold in folds]
        assert list(itertools.chain(*tested)) == list(range(different))
        trained = [{order.index(group[case.name]) for case in fold.training} for fold in folds]
        gap = [{at for at in range(different) if run[0] - 1 <= at <= run[-1] + 1} for run in tested]
        beyond = [set(range(different)) - out for out in gap]
        if all(2 * len(far) >= different - len(run) for far, run in zip(beyond, tested, strict=True)):
            assert trained == beyond and "on either side of a test are not trained on" in how
        else:  # so few that hardly any would be left
            assert trained == [set(range(different)) - set(run) for run in tested] and "either side" not in how
