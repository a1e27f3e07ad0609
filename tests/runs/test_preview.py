"""The preview page: of the bundle's own data and settings, offline, without any training."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from conftest import configure, write_volumes
from fewscan.cli import main
from fewscan.training.plan import plan


@pytest.fixture
def bundle(tmp_path):
    plan(write_volumes(tmp_path / "data", count=2), tmp_path / "bundle", validation=0)
    return configure(tmp_path / "bundle", patch=[16, 16, 16])


def change(bundle, intensities=True, **augmentation):
    file = bundle / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["augmentation"].update(augmentation)
    if not intensities:
        config["train"]["augment"] = config["train"]["augment"][:1]
    file.write_text(json.dumps(config))


def pictures(page):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


def test_the_page_shows_a_patch_and_its_augmentations(bundle, capsys):
    assert main(["preview", str(bundle), "--number", "3"]) == 0
    assert capsys.readouterr().out == f"wrote {bundle / 'docs' / 'preview.html'}\n"
    page = (bundle / "docs" / "preview.html").read_text(encoding="utf-8")
    shown = pictures(page)
    assert len(shown) == 4 and all(not np.array_equal(shown[0][40:], one[40:]) for one in shown[1:])
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "elastic_sd" in page
    assert not (bundle / "models" / "model.pt").exists()
    main(["preview", str(bundle), "--number", "3", "--output", str(bundle / "again.html")])
    assert (bundle / "again.html").read_text(encoding="utf-8") == page


def test_without_augmentation_every_picture_is_the_patch_itself(bundle):
    change(bundle, intensities=False, elastic_sd=0, rotate_degrees=0, scale=[1, 1], flip=False)
    assert main(["preview", str(bundle), "--number", "2"]) == 0
    page = (bundle / "docs" / "preview.html").read_text(encoding="utf-8")
    first, *others = pictures(page)
    assert all(np.array_equal(first[40:], other[40:]) for other in others)  # below the titles
    assert "200 drawn elastic deformations none folds" in page


def test_it_says_how_many_deformations_fold(bundle):
    change(bundle, elastic_sd=50)
    assert main(["preview", str(bundle), "--number", "1"]) == 0
    told = (bundle / "docs" / "preview.html").read_text(encoding="utf-8")
    assert "Of 200 drawn elastic deformations 200 would have folded the image" in told


def test_2d_patches(tmp_path):
    plan(write_volumes(tmp_path / "data", count=2), tmp_path / "bundle", validation=0, dims=2)
    assert main(["preview", str(tmp_path / "bundle"), "--number", "1"]) == 0
    assert len(pictures((tmp_path / "bundle" / "docs" / "preview.html").read_text(encoding="utf-8"))) == 2


def test_what_cannot_be_shown_is_said_in_one_line(bundle, capsys):
    assert main(["preview", str(bundle), "--number", "0"]) == 1
    assert "--number has to be 1 or more" in capsys.readouterr().err
    assert main(["preview", str(bundle / "gone")]) == 1
    assert "train.json: is missing" in capsys.readouterr().err
    file = bundle / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["train"]["augment"] = []
    file.write_text(json.dumps(config))
    assert main(["preview", str(bundle)]) == 1
    assert "does not begin with RandomPatchd" in capsys.readouterr().err
