"""Label values, names, colours and codes survive every way in and out."""

import numpy as np
import pytest
from pydicom.sr._concepts_dict import concepts

from fewscan.errors import LabelError
from fewscan.labels import LabelTable, format_ctbl, palette, parse_ctbl
from fewscan.terminology import ANTERIOR, CONCEPTS, GENERIC, LEFT, POSTERIOR, RIGHT, look_up

TABLE = LabelTable.from_json(["liver", {"name": "left kidney", "value": 7}, {"name": "gadget", "value": 300}])


def test_classes_and_values_are_each_others_inverse():
    classes = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint16)
    values = TABLE.to_values(classes)
    assert values.dtype == np.uint16 and set(np.unique(values)) == {0, 1, 7, 300}
    np.testing.assert_array_equal(TABLE.to_classes(values, "x"), classes)
    np.testing.assert_array_equal(TABLE.to_classes(values.astype(np.float32), "x"), classes)


def test_strange_values_are_named_with_the_file():
    with pytest.raises(LabelError, match=r"case\.nii\.gz.* 2, 9\b"):
        TABLE.to_classes(np.array([0, 1, 9, 2]), "case.nii.gz")
    with pytest.raises(LabelError, match=r"0\.5"):
        TABLE.to_classes(np.array([0, 0.5]), "case.nii.gz")
    with pytest.raises(LabelError, match="nan"):
        TABLE.to_classes(np.array([0, np.nan]), "case.nii.gz")
    with pytest.raises(LabelError, match="-1"):
        TABLE.to_classes(np.array([0, -1]), "case.nii.gz")


def test_json_keeps_everything():
    assert LabelTable.from_json(TABLE.to_json()) == TABLE


def test_one_byte_where_it_fits():
    assert TABLE.dtype is np.uint16
    assert LabelTable.from_json([{"name": "a", "value": 255}]).dtype is np.uint8


@pytest.mark.parametrize(
    "rows",
    [["a", "a"], [{"name": "a", "value": 0}], [{"name": "a", "value": 65536}], [{"value": 1}], [{"name": "a", "x": 1}],
     [{"name": "a", "colour": [1, 2]}], [{"name": "a", "colour": [1, 2, 256]}],
     [{"name": "a", "value": 2}, {"name": "b", "value": 2}]],
)  # fmt: skip
def test_tables_that_contradict_themselves_are_refused(rows):
    with pytest.raises(LabelError):
        LabelTable.from_json(rows)


def test_ctbl_round_trip():
    rows = parse_ctbl(format_ctbl(TABLE), "x")
    assert [(row["value"], row["name"], tuple(row["colour"])) for row in rows] == [
        (label.value, label.name, label.colour) for label in TABLE
    ]
    with pytest.raises(LabelError, match="broken"):
        parse_ctbl("broken line", "x.ctbl")


def test_palette_colours_differ():
    colours = np.array([palette(n) for n in range(1, 13)], dtype=int)
    distance = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert distance[~np.eye(12, dtype=bool)].min() > 40


def test_names_become_codes():
    for name in ("Left kidney", "kidney_l", "kidney left", "KIDNEY-LEFT"):
        meaning = look_up(name)
        assert (meaning.type.value, meaning.modifier) == ("64033007", LEFT)
    assert look_up("hippocampus anterior").modifier == ANTERIOR
    assert look_up("Posterior Hippocampus").modifier == POSTERIOR
    assert look_up("right posterior hippocampus").modifier == RIGHT
    assert look_up("left ventricle").type.meaning == "Left ventricle" and look_up("left ventricle").modifier is None
    assert look_up("Left-Lateral-Ventricle").modifier == LEFT
    assert look_up("vertebrae_L3").type.value == "36470004"
    assert look_up("rib_right_7").type.meaning == "Seventh rib"


@pytest.mark.parametrize("name", ["", "label", "livr", "left", "anterior", "liver tumor core x", "left right kidney"])
def test_unknown_names_stay_generic(name):
    assert look_up(name) == GENERIC


def test_generic_labels_are_announced():
    assert TABLE.generic() == ["gadget"]


def test_codes_mean_what_dicom_says():
    known: dict[str, list[str]] = {}
    for codes in concepts["SCT"].values():
        for value, (meaning, _) in codes.items():
            known.setdefault(value, []).append(meaning.lower())
    unknown = set()
    for category, code in CONCEPTS.values():
        if code.value not in known:
            unknown.add(code.meaning)
        elif not any(code.meaning.lower() in meaning for meaning in known[code.value]):
            raise AssertionError(f"{code} is {known[code.value]} for DICOM")
        assert category.scheme == code.scheme == "SCT" and code.value.isdigit() and len(code.meaning) <= 64
    ribs = {f"{n} rib" for n in ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth",
                                 "Tenth", "Eleventh", "Twelfth")}  # fmt: skip
    assert unknown == ribs | {
        "Myocardium", "S1 vertebra", "Iliopsoas muscle", "Deep muscle of back", "Gluteus maximus muscle",
        "Gluteus medius muscle",
    }  # fmt: skip


def test_a_code_has_one_meaning():
    meanings = {(code.value, code.meaning) for _, code in CONCEPTS.values()}
    assert len(meanings) == len({value for value, _ in meanings})
