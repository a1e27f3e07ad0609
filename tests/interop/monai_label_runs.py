"""What MONAI Label's own `monaibundle` app makes of a bundle, without its server.

    PYTHON_WITH_MONAILABEL tests/interop/monai_label_runs.py APP STUDIES infer | train

APP holds the bundle as `model/my_segmentation`, STUDIES the images and, for training, `labels/final`. `infer` writes
the mask of each image as STUDIES/masks/NAME.nii.gz and prints MONAI Label's names and numbers of the labels; `train`
trains for one epoch. fewscan has to be importable there, as the bundle needs it.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main(app_folder: Path, studies: Path, task: str) -> None:
    shutil.copytree(Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle", app_folder, dirs_exist_ok=True)
    sys.path.insert(0, str(app_folder))
    from main import MyApp  # the app's main.py

    settings = {"models": "my_segmentation", "zoo_source": "local", "sam2": "false"}
    app = MyApp(str(app_folder), str(studies), settings)
    request = {"model": "my_segmentation", "device": "cpu"}
    if task == "train":
        app.train({**request, "max_epochs": 1, "val_split": 0.25})
        return
    names = {}
    for image in sorted(studies.glob("*.nii.gz")):
        stem = image.name.removesuffix(".nii.gz")
        answer = app.infer({**request, "image": stem, "result_extension": ".nii.gz"})
        (studies / "masks").mkdir(exist_ok=True)
        shutil.move(answer["file"], studies / "masks" / image.name)
        names = answer["params"]["label_names"]
    print(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3])
