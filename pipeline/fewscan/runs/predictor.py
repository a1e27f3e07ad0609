"""A trained bundle, loaded once: from a scan to label values on the scan's own grid."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewscan.bundle import parsed, provenance, read_json, refuse_markup
from fewscan.errors import BundleError, first_line
from fewscan.files import sha256
from fewscan.networks.ensemble import Ensemble
from fewscan.scans import Scan
from fewscan.scans.reader import image_paths

if TYPE_CHECKING:
    from fewscan.transforms import DecideLabelsd


class Predictor:
    """A bundle's own preprocessing, network, inferer and postprocessing, loaded once.

    What it answers for a scan is what `python -m monai.bundle run` with the same inference.json writes: both end in
    `fewscan.decision.Decision`.

    Args:
        bundle: a trained bundle.
        device: for example "cpu" or "cuda:1"; None takes the bundle's own choice.
        members: files of weights of the bundle's network; then the mean of their softmaxes decides, and the bundle's
            own weights are not used.
    """

    def __init__(self, bundle: Path, device: str | None = None, members: Sequence[Path] = ()) -> None:
        from monai.transforms import Compose

        from fewscan.tiling import OverlapTileInferer
        from fewscan.transforms import DecideLabelsd  # both load MONAI

        config = bundle / "configs" / "inference.json"
        weights = tuple(members) or (bundle / "models" / "model.pt",)
        with parsed(config, None if device is None else _device(device)) as built:
            self.device = _device(built("device"))
            self.preprocessing = built("preprocessing")
            self.inferer = built("inferer")
            steps = built("postprocessing").transforms
            self.network: torch.nn.Module = built("network_def").to(self.device).eval()
        deciding = [s for s in steps if not type(s).__name__.startswith("SaveImage")]
        self.postprocessing = Compose(deciding)
        self.decide: DecideLabelsd | None = None
        """Where it is all that follows the network: then the answer is decided piece by piece."""
        if (
            len(deciding) == 1
            and isinstance(deciding[0], DecideLabelsd)
            and isinstance(self.inferer, OverlapTileInferer)
        ):
            self.decide = deciding[0]
        networks = [_loaded(file, copy.deepcopy(self.network), config) for file in weights]
        self.network = Ensemble(networks) if members else networks[0]
        self.spec: dict[str, Any] = {
            **provenance(str(bundle)),
            "config_sha256": _config_hash(config),
            "seed": _seed(bundle / "configs" / "train.json"),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "monai": version("monai"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        if isinstance(self.inferer, OverlapTileInferer):  # decides the tiles, and they the last bits
            self.spec["tile_memory_gb"] = round(self.inferer.allowed(self.device) / 2**30, 2)
        if members:
            hashes = [sha256(file) for file in members]
            self.spec |= {
                "model_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
                "ensemble": hashes,
            }

    def __call__(self, scan: Scan) -> NDArray[Any]:
        """Label values (i, j, k) on the scan's grid."""
        with torch.inference_mode():
            data = self.prepare(scan)
            if self.decide is not None:
                return np.asarray(self._stream(data["image"], self.decide).numpy()[0])
            data["pred"] = self.logits(data["image"])
            values = self.postprocessing(data)["pred"]
        return np.asarray(values.cpu().numpy()[0])

    def _stream(self, image: Any, decide: DecideLabelsd) -> Any:
        """Labels as soon as a piece of the answer is there, which never exists as a whole."""
        decision, answered = decide.begin(image), 0
        volume = image.as_subclass(torch.Tensor)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            for piece in self.inferer.pieces(volume, self.network, self.network, slack=not decision.aligned):
                decision.add(piece.logits, piece.box, piece.core)
                answered = len(piece.logits)
        return decide.finish(decision, answered, image)

    def prepare(self, scan: Scan) -> dict[str, Any]:
        """`image`: the scan as the network sees it, a MetaTensor (channel, *spatial) on the network's grid."""
        data: dict[str, Any] = self.preprocessing({"image": image_paths(scan)})
        return data

    def logits(self, image: Any) -> Any:
        """The network's answer (classes, *spatial) for a preprocessed image (channel, *spatial), tile by tile."""
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            return self.inferer(image[None].to(self.device), self.network)[0]


def read_settings(bundle: Path) -> dict[str, Any]:
    """The bundle's inference config; BundleError where it lacks what `segment` needs, as bundles of others may."""
    refuse_markup(str(bundle))
    file = bundle / "configs" / "inference.json"
    settings: dict[str, Any] = read_json(file)
    needed = ("channels", "labels", "device", "preprocessing", "inferer", "network_def", "postprocessing")
    missing = [key for key in needed if key not in settings]
    if missing:
        raise BundleError(
            f"{file}: has no {', '.join(missing)}, so it is no bundle of fewscan; run it by "
            "`python -m monai.bundle run`"
        )
    return settings


def _device(wanted: str | torch.device) -> torch.device:
    """The device, tried out; BundleError where this machine does not have it."""
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as problem:  # torch asserts that it was built with CUDA
        raise BundleError(
            f"the device {wanted} cannot be used ({first_line(problem)}); choose --device cpu, or cuda:0 with a GPU"
        ) from problem
    return device


def _seed(training: Path) -> int | None:
    """Of the training; None where the bundle was passed on without its training config."""
    return read_json(training).get("seed") if training.exists() else None


def _loaded(weights: Path, network: torch.nn.Module, config: Path) -> torch.nn.Module:
    """The network with these weights."""
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as problem:
        raise BundleError(
            f"{weights}: does not fit the network of {config} ({type(problem).__name__}); train the bundle again, "
            "or undo what was changed in its network_def, channels or labels"
        ) from problem
    return network


def _config_hash(config: Path) -> str:
    """Of what decides labels: a bundle's paths may change without a change of the masks."""
    content = {k: v for k, v in read_json(config).items() if k not in ("dataset_dir", "output_dir", "bundle_root")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
