"""The peer: nnU-Net trained for given minutes on the same cases, and its masks of the test cases.

    python tests/benchmarks/nnunet.py IMAGES LABELS WORK --train 'hippocampus_00*' --test 'hippocampus_1*' --minutes 15

Runs in an environment of its own (`pip install torch nnunetv2==2.8.1`), without fewscan. Images are PNG or NIfTI with
labels of equal names. Its own plan, network, augmentation, loss and optimiser; the steps go on until the time is over,
its poly schedule runs over the minutes, and nothing is spent on validation. WORK gets `masks/NAME_seg.*` for
`accuracy.py` and, of PNG, `probabilities/NAME.npy` (column, row) of the last label for `isbi2012.py`.
"""

import argparse
import json
import os
import shutil
import time
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

IDENTIFIER = 501


def main() -> None:
    """Prepare, train, predict."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("images", "labels", "work"):
        parser.add_argument(name, type=Path)
    for name in ("--train", "--test"):
        parser.add_argument(name, nargs="+", required=True, help="patterns on file names without their ending")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    work = options.work.resolve()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(work / name)
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    names = sorted(file.name for file in options.images.iterdir() if file.name.endswith((".png", ".nii.gz")))
    ending = ".png" if names[0].endswith(".png") else ".nii.gz"
    part = {
        key: [n.removesuffix(ending) for n in names if any(fnmatch(n.removesuffix(ending), p) for p in patterns)]
        for key, patterns in (("train", options.train), ("test", options.test))
    }
    assert part["train"] and part["test"] and not set(part["train"]) & set(part["test"]), part
    dataset = prepare(options.images, options.labels, work, part, ending)
    folder = train(dataset, "2d" if ending == ".png" else "3d_fullres", options.minutes, options.device)
    predict(folder, work, part["test"], ending, options.device)


def prepare(images: Path, labels: Path, work: Path, part: dict[str, list[str]], ending: str) -> str:
    """Write the cases as nnU-Net wants them, plan and preprocess; returns the name of its data set."""
    import nibabel
    from PIL import Image

    name = f"Dataset{IDENTIFIER}_peer"
    raw = work / "raw" / name
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    values: set[int] = set()
    for case in part["train"]:
        if ending == ".png":
            label = (np.asarray(Image.open(labels / f"{case}.png")) > 0).astype(np.uint8)
            Image.fromarray(label).save(raw / "labelsTr" / f"{case}.png")
        else:
            image = nibabel.load(labels / f"{case}.nii.gz")
            label = np.rint(np.asarray(image.dataobj)).astype(np.uint8)
            header = nibabel.load(images / f"{case}.nii.gz").affine
            nibabel.save(nibabel.Nifti1Image(label, header), raw / "labelsTr" / f"{case}.nii.gz")
        values |= {int(v) for v in np.unique(label)}
    for key, folder in (("train", "imagesTr"), ("test", "imagesTs")):
        for case in part[key]:
            shutil.copyfile(images / f"{case}{ending}", raw / folder / f"{case}_0000{ending}")
    content = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, **{f"label {v}": v for v in sorted(values - {0})}},
        "numTraining": len(part["train"]),
        "file_ending": ending,
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([IDENTIFIER], num_processes=2)
    plan_experiments([IDENTIFIER])
    preprocess([IDENTIFIER], configurations=["2d" if ending == ".png" else "3d_fullres"], num_processes=[2])
    # it wants a validation part: these cases are in both, so that all are trained on; the part is never used
    split = [{"train": part["train"], "val": part["train"][:1]}]
    (work / "preprocessed" / name / "splits_final.json").write_text(json.dumps(split))
    return name


def train(dataset: str, configuration: str, minutes: float, device: str) -> str:
    """Train until the time is over; returns the folder of the model."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, configuration, 0, device=torch.device(device))
    trainer.on_train_start()
    trainer.network.train()
    started, steps = time.monotonic(), 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - done) ** 0.9
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if steps % 20 == 0:
            print(f"step {steps}, {done:.0%}, loss {float(loss):.3f}", flush=True)
    print(f"{steps} steps in {(time.monotonic() - started) / 60:.1f} minutes, batch {trainer.batch_size}, "
          f"patch {trainer.configuration_manager.patch_size}")  # fmt: skip
    trainer.current_epoch = 1
    trainer.on_train_end()
    return str(trainer.output_folder_base)


def predict(folder: str, work: Path, test: list[str], ending: str, device: str) -> None:
    """Masks, and of PNG probabilities, with its mirrored copies averaged as it does by default."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device(device), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(folder, (0,))
    raw = work / "raw" / f"Dataset{IDENTIFIER}_peer" / "imagesTs"
    out = work / "predicted"
    out.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(
        [[str(raw / f"{case}_0000{ending}")] for case in test],
        [str(out / case) for case in test],
        save_probabilities=ending == ".png",
    )
    (work / "masks").mkdir(exist_ok=True)
    (work / "probabilities").mkdir(exist_ok=True)
    for case in test:
        shutil.copyfile(out / f"{case}{ending}", work / "masks" / f"{case}_seg{ending}")
        if ending == ".png":
            probability = np.load(out / f"{case}.npz")["probabilities"][-1, 0]
            np.save(work / "probabilities" / f"{case}.npy", probability.T.astype(np.float32))


if __name__ == "__main__":
    main()
