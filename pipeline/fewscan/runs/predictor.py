"""A trained bundle, loaded once: from a scan to label values on the scan's own grid."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays
from fewscan.bundle import parsed, provenance, read_json, refuse_markup
from fewscan.decision import Decision
from fewscan.errors import BudgetError, BundleError, first_line
from fewscan.files import sha256
from fewscan.grid import Affine, Grid
from fewscan.network_grid import Way
from fewscan.networks import UNet, lay_out
from fewscan.networks.ensemble import Ensemble
from fewscan.prepared import PreparedVolume
from fewscan.scans import Scan
from fewscan.scans.reader import image_paths
from fewscan.straight import Straight
from fewscan.tiling.backend import OpenVinoNetwork, choose_backend

if TYPE_CHECKING:
    from fewscan.tiling.layout import Layout
    from fewscan.tiling.stream import Volume
    from fewscan.transforms import DecideLabelsd, NormaliseIntensityd, ToNetworkGridd

LESS = 0.6
"""Of the memory that tiles took, where a GPU's did not suffice."""


class Predictor:
    """A bundle's own preprocessing, network, inferer and postprocessing, loaded once.

    What it answers for a scan is what `python -m monai.bundle run` with the same inference.json writes: both end in
    `fewscan.decision.Decision`.

    Args:
        bundle: a trained bundle.
        device: for example "cpu" or "cuda:1"; None takes the bundle's own choice.
        members: files of weights of the bundle's network; then the mean of their softmaxes decides, and the bundle's
            own weights are not used.
        backend: of `fewscan.tiling.BACKENDS`, what runs the network where labels are decided in parts.
        straighten: whether the network sees a sheared scan (gantry tilt) upright: see `Straight`.

    Raises BundleError where the bundle cannot be used, or OpenVINO or `straighten` is asked for and cannot be had.

    Attributes:
        notes: what was decided on the way to the last answer, in words.
    """

    def __init__(
        self,
        bundle: Path,
        device: str | None = None,
        members: Sequence[Path] = (),
        backend: str = "auto",
        straighten: bool = False,
    ) -> None:
        from monai.transforms import Compose

        config = bundle / "configs" / "inference.json"
        weights = tuple(members) or (bundle / "models" / "model.pt",)
        with parsed(config, None if device is None else _device(device)) as built:
            self.device = _device(built("device"))
            self.preprocessing = built("preprocessing")
            self.inferer = built("inferer")
            steps = built("postprocessing").transforms
            self.network: torch.nn.Module = lay_out(built("network_def").to(self.device)).eval()
        deciding = [step for step in steps if not type(step).__name__.startswith("SaveImage")]
        self.postprocessing = Compose(deciding)
        self.decide = _deciding(deciding, self.inferer)
        self.reading = _reading(self.preprocessing.transforms)
        self.notes: list[str] = []
        self.straighten = straighten
        if straighten and (self.decide is None or self.reading is None):
            raise BundleError(
                f"{config}: has steps of its own around the network, which read scans as they are; leave --straighten "
                "out"
            )
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
        if straighten:
            self.spec["straighten"] = True
        self.body, self.head = _split(self.network)
        self.ask: Callable[[torch.Tensor], torch.Tensor] = self.body
        if self.decide is not None:
            self.spec["backend"] = choose_backend(backend, self.body, self.device)
            if self.spec["backend"] == "openvino":
                self.ask = OpenVinoNetwork(self.body)
                self.spec["openvino"] = version("openvino")
        elif backend == "openvino":
            raise BundleError(
                f"{config}: has steps of its own behind the network, which torch runs; leave --backend out"
            )
        self.allow(None)
        if members:
            hashes = [sha256(file) for file in members]
            self.spec |= {
                "model_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
                "ensemble": hashes,
            }

    def allow(self, tile_memory_gb: float | None) -> None:
        """Give tiles as many GiB on the device; None for what the bundle's inferer takes by itself."""
        from fewscan.tiling import OverlapTileInferer

        if isinstance(self.inferer, OverlapTileInferer):  # decides the tiles, and they the last bits
            if tile_memory_gb is not None:
                self.inferer.memory_gb = round(tile_memory_gb, 2)
            self.spec["tile_memory_gb"] = round(self.inferer.allowed(self.device) / 2**30, 2)

    def __call__(
        self, scan: Scan, array: NDArray[Any] | None = None, empty: Arrays = IN_MEMORY_ONLY
    ) -> NDArray[np.integer]:
        """Label values (i, j, k) on the scan's grid.

        Args:
            scan: the image.
            array: what `scan.read()` gives, where that is at hand.
            empty: makes the large arrays that are needed.
        """
        self.notes.clear()
        if scan.planes and (self.decide is None or self.reading is None):
            raise BundleError(
                f"{scan.name}: slices are missing, and the bundle has steps of its own around the network, which read "
                "scans as they are; leave --resample-gaps out"
            )
        with torch.inference_mode():
            if self.decide is None:
                data = self.prepare(scan)
                data["pred"] = self.logits(data["image"])
                return np.asarray(self.postprocessing(data)["pred"].cpu().numpy()[0])
            if self.reading is None:
                image = self.prepare(scan)["image"]
                volume, affine = image.as_subclass(torch.Tensor), np.asarray(image.affine.cpu(), dtype=np.float64)
                return self._stream(volume, affine, scan.grid, self.decide, empty)
            normalise, to_grid = self.reading
            array = scan.read(empty) if array is None else array
            rules = normalise.rules(array, str(scan.files[0]))
            straight = self._straight(scan)
            grid = scan.grid if straight is None else straight.grid
            array = array if straight is None else straight.array(array, empty)
            prepared = PreparedVolume(array, grid, rules, to_grid.spacing, to_grid.slice_axis)
            small = empty.holds(4 * math.prod(prepared.shape))
            labels = self._stream(prepared.whole() if small else prepared, prepared.affine, grid, self.decide, empty)
            return labels if straight is None else straight.back(labels, empty)

    def _straight(self, scan: Scan) -> Straight | None:
        """How a sheared scan is straightened, which the notes say; None where it is not."""
        if not self.straighten or scan.grid.is_orthogonal:
            return None
        straight = Straight.of(scan.grid)
        i, j = straight.shifts.max(axis=0).tolist()
        self.notes.append(
            f"the network saw the stack upright: planes moved by up to {i} x {j} whole voxels, and the mask back"
        )
        return straight

    def shape(self, scan: Scan) -> tuple[int, ...]:
        """(C, *spatial) of a scan as the network sees it; where the bundle has preprocessing of its own, as it is."""
        if self.reading is None:
            return (len(scan.channels), *scan.grid.shape)
        to_grid = self.reading[1]
        upright = self.straighten and not scan.grid.is_orthogonal
        grid = Straight.of(scan.grid).grid if upright else scan.grid
        way = Way.to_network(grid, to_grid.spacing, to_grid.slice_axis)
        return (len(scan.channels), *way.target.shape)

    @property
    def weight_bytes(self) -> int:
        """Of the network's parameters."""
        return sum(weight.nbytes for weight in self.network.parameters())

    def layout(self, scan: Scan) -> Layout | None:
        """The tiles of a scan; None where they are not known before it is read, or cannot be laid at all.

        Raises BudgetError where the memory that is allowed does not suffice.
        """
        if self.decide is None or self.reading is None:
            return None
        try:
            volume = np.broadcast_to(np.float32(0), self.shape(scan))
            layout: Layout = self.inferer.layout(volume, self.body, head=self.head)
        except ValueError:  # said when the scan's turn comes
            return None
        return layout

    def _stream(
        self, volume: Volume, affine: Affine, scan: Grid, decide: DecideLabelsd, empty: Arrays
    ) -> NDArray[np.integer]:
        """Labels as soon as a piece of the answer is there, which never exists as a whole."""
        known = len(self.ask.notes) if isinstance(self.ask, OpenVinoNetwork) else 0
        while True:
            decision, answered = Decision(volume.shape[1:], affine, scan, empty), 0
            try:
                with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                    slack = not decision.aligned
                    for piece in self.inferer.pieces(volume, self.ask, self.body, slack, self.head):
                        decision.add(piece.logits, piece.box, piece.core)
                        answered = len(piece.logits)
                        del piece  # before the next one is made
                if isinstance(self.ask, OpenVinoNetwork):
                    self.notes += self.ask.notes[known:]
                return decide.values(decision, answered)
            except RuntimeError as problem:
                from fewscan.training.step import is_out_of_memory  # loads MONAI's engines

                if not is_out_of_memory(problem):
                    raise
                lack = problem.with_traceback(None)  # which holds on to what fills the memory
            if not self._take_less(volume, not decision.aligned):
                raise lack

    def _take_less(self, volume: Volume, slack: bool) -> bool:
        """Whether tiles can be smaller, which they are from here on; their answer is the same but for rounding."""
        former, before = self.inferer.memory_gb, self.inferer.layout(volume, self.body, slack, self.head)
        taken = self.inferer.allowed(self.device) if before.bytes is None else before.bytes
        self.inferer.memory_gb = LESS * min(taken, self.inferer.allowed(self.device)) / 2**30
        try:
            smaller = self.inferer.layout(volume, self.body, slack, self.head).read != before.read
        except BudgetError:
            smaller = False
        if not smaller:
            self.inferer.memory_gb = former
            return False
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notes.append(
            f"the memory of {self.device} did not suffice: tiles take {self.inferer.memory_gb:.2f} GiB from here on"
        )
        return True

    def prepare(self, scan: Scan) -> dict[str, Any]:
        """`image`: the scan as the network sees it, a MetaTensor (channel, *spatial) on the network's grid."""
        data: dict[str, Any] = self.preprocessing({"image": image_paths(scan)})
        return data

    def logits(self, image: Any) -> Any:
        """The network's answer (classes, *spatial) for a preprocessed image (channel, *spatial), tile by tile."""
        from fewscan.tiling import OverlapTileInferer

        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            volume = image[None] if isinstance(self.inferer, OverlapTileInferer) else image[None].to(self.device)
            return self.inferer(volume, self.network)[0]


def _split(network: torch.nn.Module) -> tuple[torch.nn.Module, Any]:
    """A U-Net of more classes than maps without its head, and the head: what its logits take is for cores alone."""
    if isinstance(network, UNet):
        body, head = network.split()
        if head.out_channels > head.in_channels:
            return body, head
    return network, None


def read_settings(bundle: Path) -> dict[str, Any]:
    """The bundle's inference config; BundleError where it lacks what `segment` needs, as bundles of others may."""
    refuse_markup(str(bundle))
    file = bundle / "configs" / "inference.json"
    if not file.exists():
        raise BundleError(
            f"{bundle}: is no bundle: configs/inference.json is missing; give the folder that `fewscan plan` wrote"
        )
    settings: dict[str, Any] = read_json(file)
    needed = ("channels", "labels", "device", "preprocessing", "inferer", "network_def", "postprocessing")
    missing = [key for key in needed if key not in settings]
    if missing:
        raise BundleError(
            f"{file}: has no {', '.join(missing)}, so it is no bundle of fewscan; run it by "
            "`python -m monai.bundle run`"
        )
    return settings


def _deciding(after: Sequence[Any], inferer: Any) -> DecideLabelsd | None:
    """The decision, where it is all that follows fewscan's inferer: then labels are decided piece by piece."""
    from fewscan.tiling import OverlapTileInferer
    from fewscan.transforms import DecideLabelsd

    alone = len(after) == 1 and isinstance(after[0], DecideLabelsd) and isinstance(inferer, OverlapTileInferer)
    return after[0] if alone else None


def _reading(before: Sequence[Any]) -> tuple[NormaliseIntensityd, ToNetworkGridd] | None:
    """The preprocessing, where it is fewscan's own and nothing else: then a scan is read in parts."""
    from fewscan.scans import ScanReader
    from fewscan.transforms import NormaliseIntensityd, ToNetworkGridd

    before = [step for step in before if not _adds_missing_channel(step)]  # ScanReader's array has its channels
    if [type(step).__name__ for step in before] != ["LoadImaged", "NormaliseIntensityd", "ToNetworkGridd"]:
        return None
    loading, normalise, to_grid = before
    ours = (
        isinstance(loading._loader.readers[-1], ScanReader)  # MONAI asks the last one first
        and isinstance(normalise, NormaliseIntensityd)
        and isinstance(to_grid, ToNetworkGridd)
    )
    return (normalise, to_grid) if ours else None


def _adds_missing_channel(step: Any) -> bool:
    """Whether a step does nothing to an image that has its channels first, as the metadata says."""
    from monai.transforms import EnsureChannelFirstd

    return isinstance(step, EnsureChannelFirstd) and step.adjuster.input_channel_dim is None


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
