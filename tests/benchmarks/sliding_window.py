"""A peer's sliding window from a file to a mask, in a process of its own; `inference.py` calls it.

    python tests/benchmarks/sliding_window.py monai|nnunet JOB.json

JOB holds `scan` and `mask` (NIfTI), `network` (its weights), `unet` (its arguments), `device`, `patch`, `window`
(intensities or null) and `classes`. Both get patches of the training's size at overlap 0.5 under a Gaussian, one at a
time; on a GPU MONAI gets four, volume and answer are there as well, and the network computes in float16. MONAI reads
and writes with LoadImage and SaveImage; nnU-Net's environment needs torch, nnunetv2 and this `fewscan` on PYTHONPATH.
The last line that is printed is JSON: `seconds` from the file to the mask without imports, `network` seconds within the
network, `voxels` that it was given.
"""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import torch

from fewscan.networks import UNet


class Watched(torch.nn.Module):
    """A network that counts its seconds and voxels."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.voxels = network.eval(), 0.0, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wait = torch.cuda.synchronize if x.is_cuda else lambda: None
        wait()
        started = time.perf_counter()
        with torch.autocast(x.device.type, torch.float16, enabled=x.is_cuda):
            answer = self.network(x)
        wait()
        self.seconds += time.perf_counter() - started
        self.voxels += x[0, 0].numel() * len(x)
        return answer


def normalised(image: np.ndarray, window: list[float] | None) -> np.ndarray:
    """As `fewscan.transforms.NormaliseIntensityd` does it."""
    if window is not None:
        low, high = window
        return (image.clip(low, high) - low) * (2 / (high - low)) - 1
    image = image.clip(*np.percentile(image, (0.5, 99.5)))
    return (image - image.mean()) / image.std()


def monai(job: dict, network: Watched) -> None:
    """LoadImage, SlidingWindowInferer, argmax, SaveImage."""
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import LoadImage, SaveImage

    image = LoadImage(ensure_channel_first=True, image_only=True)(job["scan"])
    values = torch.from_numpy(normalised(image.numpy(), job["window"]).astype(np.float32))
    image = MetaTensor(values.to(job["device"]), meta=image.meta)
    at_once = 1 if job["device"] == "cpu" else 4
    logits = SlidingWindowInferer(job["patch"], at_once, 0.5, mode="gaussian")(image[None], network)[0]
    labels = torch.argmax(logits, dim=0, keepdim=True)
    mask = Path(job["mask"])
    save = SaveImage(mask.parent, output_dtype=np.uint8, separate_folder=False, resample=False, print_log=False)
    save(labels, filename=str(mask).removesuffix(".nii.gz"))


def nnunet(job: dict, network: Watched) -> None:
    """nnU-Net's predictor with this network in place of its own, without mirrored copies; argmax."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    source = nibabel.load(job["scan"])
    values = normalised(source.get_fdata(dtype=np.float32), job["window"]).astype(np.float32)
    predictor = nnUNetPredictor(0.5, use_mirroring=False, device=torch.device(job["device"]), allow_tqdm=False)
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=job["patch"])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=job["classes"])
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(values)[None])
    labels = torch.argmax(torch.as_tensor(logits), dim=0).numpy().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, source.affine), job["mask"])


def main() -> None:
    """Do the job and print what it took."""
    job = json.loads(Path(sys.argv[2]).read_text())
    run = {"monai": monai, "nnunet": nnunet}[sys.argv[1]]
    __import__({"monai": "monai.inferers", "nnunet": "nnunetv2.inference.predict_from_raw_data"}[sys.argv[1]])
    started = time.perf_counter()
    unet = UNet(**job["unet"])
    unet.load_state_dict(torch.load(job["network"], weights_only=True))
    network = Watched(unet.to(job["device"]).eval())
    with torch.inference_mode():
        run(job, network)
    took = {"seconds": time.perf_counter() - started, "network": network.seconds, "voxels": network.voxels}
    print(json.dumps(took))


if __name__ == "__main__":
    main()
