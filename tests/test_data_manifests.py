"""The manifests describe the files that figures and the demo were made with: every byte."""

import json
from pathlib import Path

import nilearn
import pytest

from conftest import ROOT, shared
from fewscan.files import sha256

MANIFESTS = sorted((ROOT / "data_manifests").glob("*.json"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_files_are_those_of_the_manifest(path):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest["name"] == "mni152":
        folder = Path(nilearn.__file__).parent / "datasets" / "data"
    else:
        folder = shared(f"data/{manifest['name']}")
    for file in manifest["files"]:
        assert sha256(folder / file["path"]) == file["sha256"], file["path"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_says_where_it_is_from_and_splits_do_not_overlap(path):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert manifest["name"] == path.stem and all(manifest[key] for key in ("title", "source", "licence", "citation"))
    for split in manifest["splits"].values():
        if isinstance(split["training"], list):
            assert not set(split["training"]) & set(split["test"])
