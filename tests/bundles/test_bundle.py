"""Each bundle as MONAI and MONAI Label see it: from its folder alone, by their own commands."""

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load, run, verify_net_in_out
from monai.data import MetaTensor
from monai.handlers import CheckpointLoader
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, SaveImage, SaveImaged
from PIL import Image

from bundles.commands import monai, network, output_of, parsed, start_each
from conftest import NARROW, ROOT, ball, configure, shared, write_volumes
from fewscan.bundle import provenance
from fewscan.errors import BundleError, ours
from fewscan.training.plan import plan
from fewscan.training.run import train

SHIPPED = {name: ROOT / "bundles" / f"{name}_segmentation" for name in NARROW}
CONFIGS = ("train", "inference")
every_member = pytest.mark.parametrize("member", NARROW, indirect=True)
every_name = pytest.mark.parametrize("name", NARROW)
every_shipped = pytest.mark.parametrize("shipped", SHIPPED.values(), ids=SHIPPED)


@pytest.fixture
def member(request, family):
    """A trained bundle of the family: each in turn by `every_member`, else the U-Net's. Never to be changed."""
    return family(getattr(request, "param", "unet"))


@pytest.fixture
def copy(member, tmp_path):
    """The trained bundle and its data, to be changed."""
    shutil.copytree(member.bundle.parent, tmp_path / "home")
    return tmp_path / "home" / "bundle"


# --- one source, self-contained --------------------------------------------------------------------------------------


def test_what_is_committed_is_what_the_family_renders():
    spec = importlib.util.spec_from_file_location("render", ROOT / "bundles" / "family" / "render.py")
    family = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(family)
    for name in family.NETWORKS:
        folder = ROOT / "bundles" / f"{name}_segmentation"
        files = family.render(name)
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == set(files)
        for path, text in files.items():
            assert (folder / path).read_text(encoding="utf-8") == text


@every_shipped
@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_stands_alone_and_says_everything_once(shipped, name):
    text = (shipped / "configs" / f"{name}.json").read_text()
    config = json.loads(text)
    assert "%" not in text  # macros of MONAI that look into other files, relative to the current folder
    assert text.count('"fewscan.networks.') == 1  # its class; `$fewscan.networks.lay_out` is a function
    assert config["bundle_root"] == "."
    assert str(Path.home()) not in text
    assert not [value for value in _texts(config) if value.startswith("$") and len(value) > 120]


@every_shipped
@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_user_changes_stands_at_the_top(shipped, name):
    keys = list(json.loads((shipped / "configs" / f"{name}.json").read_text()))
    shared_keys = ["spatial_dims", "channels", "labels", "spacing", "slice_axis", "intensity_window", "patch"]
    assert keys[:9] == ["imports", "bundle_root", *shared_keys]
    if name == "train":
        own = ["patch", "batch", "epochs", "learning_rate", "augmentation", "dataset_dir", "datalist"]
        assert all(keys.index(key) < keys.index("network_def") for key in own)


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


# --- MONAI ----------------------------------------------------------------------------------------------------------


@every_member
@pytest.mark.parametrize(("name", "kind"), [("train", "train"), ("inference", "infer")])
def test_monai_finds_every_property_it_knows(member, name, kind):
    workflow = ConfigWorkflow(
        config_file=str(member.bundle / "configs" / f"{name}.json"),
        meta_file=str(member.bundle / "configs" / "metadata.json"),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(member.bundle),
        dataset_dir=str(member.data if name == "train" else member.data / "images"),
        device="$torch.device('cpu')",
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, torch.nn.Module)
    if kind == "train":
        assert workflow.max_epochs == 4
        assert workflow.val_interval == 2
        assert len(workflow.train_dataset_data) == 3
        assert len(workflow.val_dataset_data) == 1
    else:
        assert len(workflow.dataset_data) == 4


@pytest.fixture(scope="module")
def commands(family, tmp_path_factory):
    """MONAI's commands on each network's trained bundle and on a copy without its weights, side by side.

    By the network's name: the folder `here` that they run in, beside `owner` with the copy and its data; the process.
    """
    schema = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
    started = {}
    for name in NARROW:
        folder, bundle = tmp_path_factory.mktemp(f"commands_{name}"), family(name).bundle
        shutil.copytree(bundle.parent, folder / "owner")
        shutil.rmtree(folder / "owner" / "bundle" / "models")
        (folder / "here").mkdir()
        meta, config = ["--meta_file", bundle / "configs" / "metadata.json"], bundle / "configs" / "inference.json"
        files = ["network_def", *meta, "--config_file", config]
        export = [*files, "--ckpt_file", bundle / "models" / "model.pt", "--filepath"]
        verify_metadata = ["verify_metadata", *meta, "--filepath", folder / schema.name]
        root = "../owner/bundle/configs"
        always = ["--bundle_root", "../owner/bundle", "--device", "$torch.device('cpu')"]
        scans = ["--dataset_dir", "../owner/data/images", "--output_dir", "masks"]
        started[name] = (
            folder / "here",
            start_each(
                *([verify_metadata] if schema.exists() and shutil.copy(schema, folder) else []),
                ["verify_net_in_out", *files, "--device", "cpu", "--p", 1, "--n", 2],
                ["ckpt_export", *export, "model.ts"],
                ["onnx_export", *export, "model.onnx", "--input_shape", "[1, 1, 24, 16, 8]"],
                ["run", "--config_file", f"{root}/train.json", *always],
                ["run", "--config_file", f"{root}/inference.json", *always, *scans],
                ["run", "--config_file", f"['{root}/train.json','{root}/evaluate.json']", *always],
                cwd=folder / "here",
            ),
        )
    yield started
    for _, process in started.values():
        process.kill()


@every_name
def test_verify_metadata(family, commands, name):
    shared("schema")
    assert "metadata is verified with no error" in output_of(commands[name][1])
    metadata = json.loads((family(name).bundle / "configs" / "metadata.json").read_text())
    assert "fewscan" in metadata["required_packages_version"]


@every_name
def test_verify_net_in_out(commands, name):
    assert "data shape of network is verified with no error" in output_of(commands[name][1])


@every_name
def test_a_plan_for_2d_keeps_what_its_metadata_say(tmp_path, name):
    plan(write_volumes(tmp_path / "data"), tmp_path / "bundle", dims=2, network=name)
    configs = tmp_path / "bundle" / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}
    verify_net_in_out("network_def", **files, device="cpu", p=1, n=2)  # raises where they differ
    metadata = json.loads((configs / "metadata.json").read_text())["network_data_format"]
    shapes = [metadata[side][key]["spatial_shape"] for side, key in (("inputs", "image"), ("outputs", "pred"))]
    assert [len(shape) for shape in shapes] == [2, 2]
    metadata["outputs"]["pred"]["num_channels"] = 3
    (tmp_path / "wrong.json").write_text(json.dumps({"network_data_format": metadata}))
    with pytest.raises(ValueError, match="channel number"):
        verify_net_in_out("network_def", **{**files, "meta_file": str(tmp_path / "wrong.json")}, device="cpu", p=1, n=2)


@every_name
def test_ckpt_export_answers_like_the_network(family, commands, name):
    folder, process = commands[name]
    output_of(process)
    script = torch.jit.load(folder / "model.ts").eval()
    with torch.no_grad():
        for shape in ((24, 16, 8), (17, 21, 10)):  # odd sizes too
            image = torch.randn(1, 1, *shape)
            torch.testing.assert_close(script(image), network(family(name).bundle)(image), rtol=1e-5, atol=1e-5)


@every_name
def test_onnx_export_answers_like_the_network(family, commands, name):
    folder, process = commands[name]
    output_of(process)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    image = torch.randn(1, 1, 24, 16, 8)
    answer = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(answer, network(family(name).bundle)(image).numpy(), rtol=1e-4, atol=1e-5)


@every_member
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_monai_loads_the_trained_network_by_name(member, kind):
    """`monai.bundle.load` from the folder, offline; it builds the network by the config and fills in model.pt."""
    net = load("bundle", bundle_dir=member.bundle.parent, workflow_type=kind).eval()
    image = torch.randn(1, 1, 16, 16, 8)
    with torch.no_grad():
        assert torch.equal(net(image), network(member.bundle)(image))


@every_name
def test_plain_monai_trains_infers_and_evaluates_from_any_folder(family, commands, name):
    """As the README says, without fewscan's commands: weights as by `fewscan train`, masks on the scans' grids."""
    here, process = commands[name]
    output_of(process)
    bundle, data = here.parent / "owner" / "bundle", here.parent / "owner" / "data"
    wanted = torch.load(family(name).bundle / "models" / "model.pt", weights_only=True)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.allclose(weights[key], wanted[key], atol=1e-4) for key in wanted)
    masks = sorted((here / "masks").glob("*.nii.gz"))
    assert [mask.name for mask in masks] == [f"case{n}_seg.nii.gz" for n in range(4)]
    preprocess, net = parsed(bundle, "inference").get_parsed_content("preprocessing"), network(bundle)
    for number, mask in enumerate(masks):
        file = data / "images" / f"case{number}.nii.gz"
        answer = nibabel.load(mask)
        assert np.array_equal(answer.affine, nibabel.load(file).affine)
        # the volume is on the network's grid already, left first, posterior first; mirrored at its end to the stride
        image = preprocess({"image": str(file)})["image"].as_tensor()[None]
        ends = [end for n in reversed(image.shape[2:]) for end in (0, -n % net.stride)]
        with torch.no_grad():
            logits = net(torch.nn.functional.pad(image, ends, mode="reflect"))[0].numpy()
        logits = logits[(slice(None), *map(slice, image.shape[2:]))]
        turned = logits.argmax(0)[:, ::-1]
        first, second = np.sort(logits, axis=0)[[-1, -2]]
        clear = (first - second > 1e-3)[:, ::-1]
        assert np.array_equal(np.asarray(answer.dataobj)[clear], turned[clear])
    assert np.unique([np.asarray(nibabel.load(mask).dataobj) for mask in masks]).tolist() == [0, 1]
    score = float((bundle / "evaluation" / "metrics.csv").read_text().splitlines()[0].split(",")[1])
    record = json.loads((bundle / "models" / "training.json").read_text())
    assert score == pytest.approx(record["validation"]["val_mean_dice"], abs=1e-3)


@every_member
def test_untrained_inference_is_refused_unless_asked_for(copy, tmp_path):
    (copy / "models" / "model.pt").unlink()
    options = {
        "config_file": str(copy / "configs" / "inference.json"),
        "bundle_root": str(copy),
        "dataset_dir": str(copy.parent / "data" / "images"),
        "output_dir": str(tmp_path / "masks"),
        "device": "$torch.device('cpu')",
        "logging_file": False,
    }
    with pytest.raises(RuntimeError) as refused:
        run(**options)
    assert "model.pt" in "".join(map(str, _chain(refused.value)))
    assert not list(tmp_path.rglob("*_seg.nii.gz"))
    run(**options, allow_random_weights=True)
    assert len(list((tmp_path / "masks").glob("*_seg.nii.gz"))) == 4


def _chain(problem):
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__


def evaluate(bundle, **options):
    files = [str(bundle / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    run(config_file=files, bundle_root=str(bundle), logging_file=False, device="$torch.device('cpu')", **options)


@every_member
def test_evaluate_scores_held_out_cases_on_their_own_grid(copy):
    """On a network grid other than the scan's; the Dice is that of the masks that inference writes."""
    for name in CONFIGS:
        file = copy / "configs" / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "spacing": [1.3, 1.7, 1.2]}))
    (copy / "models" / "training.json").unlink()  # says that the training was on another
    datalist = json.loads((copy / "configs" / "datalist.json").read_text())
    cases = datalist["training"]  # three cases, on which these networks find something
    swapped = {**datalist, "training": datalist["validation"], "validation": cases}
    (copy / "configs" / "datalist.json").write_text(json.dumps(swapped))
    evaluate(copy)
    rows = (copy / "evaluation" / "metrics.csv").read_text().splitlines()
    run(
        config_file=str(copy / "configs" / "inference.json"),
        bundle_root=str(copy),
        dataset_dir=str(copy.parent / "data" / "images"),
        output_dir=str(copy / "masks"),
        device="$torch.device('cpu')",
        logging_file=False,
    )
    scores = []
    for case in cases:
        written = copy / "masks" / Path(case["image"]).name.replace(".nii.gz", "_seg.nii.gz")
        mask, truth = (
            np.asarray(nibabel.load(file).dataobj) > 0 for file in (written, copy.parent / "data" / case["label"])
        )
        scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert min(scores) > 0
    assert float(rows[0].split(",")[1]) == pytest.approx(np.mean(scores), abs=1e-6)


def test_evaluate_refuses_where_nothing_was_held_out(copy):
    file = copy / "configs" / "datalist.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "validation": []}))
    with pytest.raises(RuntimeError) as refused:
        evaluate(copy)
    assert isinstance(ours(refused.value), BundleError)
    assert "nothing to score" in str(ours(refused.value))


def test_photographs_train_and_infer_in_2d(tmp_path):
    data = tmp_path / "data"
    for kind in ("images", "labels"):
        (data / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        label = ball((45, 37), random.uniform(12, 26, 2), 9)
        image = np.clip(random.normal(60, 15, label.shape) + 120 * label, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(data / "images" / f"{name}.png")
        Image.fromarray(255 * label).save(data / "labels" / f"{name}.png")
    plan(data, tmp_path / "bundle", validation=1)
    configure(tmp_path / "bundle", patch=[32, 32], batch=4, epochs=12)
    train(tmp_path / "bundle", device="cpu")
    score = json.loads((tmp_path / "bundle" / "models" / "training.json").read_text())["validation"]["val_mean_dice"]
    assert score > 0.85  # the disc is far brighter than the rest: a threshold would find it
    run(
        config_file=str(tmp_path / "bundle" / "configs" / "inference.json"),
        bundle_root=str(tmp_path / "bundle"),
        dataset_dir=str(data / "images"),
        output_dir=str(tmp_path / "masks"),
        device="$torch.device('cpu')",
        logging_file=False,
    )
    for name in ("a", "b", "c"):
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}_seg.png"))
        truth = np.asarray(Image.open(data / "labels" / f"{name}.png"))
        assert set(np.unique(mask)) == {0, 255}
        assert 2 * ((mask > 0) & (truth > 0)).sum() / ((mask > 0).sum() + (truth > 0).sum()) > 0.85


@every_member
def test_two_ranks_train_on_the_cpu(copy, tmp_path):
    """torchrun with gloo, ended by the time: both stop at the same step with the same parameters, rank 0 writes."""
    shutil.rmtree(copy / "models")
    keep = "$torch.save(@network.module.state_dict(), @bundle_root + f'/rank{torch.distributed.get_rank()}.pt')"
    (copy / "keep.json").write_text(json.dumps({"run": ["$@train::trainer.run()", keep]}))
    files = [str(copy / name) for name in ("configs/train.json", "configs/multi_gpu_train.json", "keep.json")]
    monai(
        "run", "--config_file", str(files), "--bundle_root", copy, "--minutes", "0.03", cwd=tmp_path,
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"),
    )  # fmt: skip
    first, second = (torch.load(copy / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    parameters = [name for name in first if "running" not in name and "num_batches" not in name]
    assert parameters
    assert all(torch.equal(first[name], second[name]) for name in parameters)
    written = torch.load(copy / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(first[name], written[name]) for name in first)
    files = ["best.pt", "history.csv", "model.pt", "training.html", "training.json"]
    assert sorted(file.name for file in (copy / "models").iterdir()) == files
    record = json.loads((copy / "models" / "training.json").read_text())
    assert record["steps"] > 4
    assert "val_mean_dice" in record["validation"]
    torch.manual_seed(0)  # the config's `seed`
    untrained = parsed(copy, "train").get_parsed_content("network_def").state_dict()
    assert not any(torch.equal(untrained[name], written[name]) for name in parameters)


# --- what other hosts of bundles look at -----------------------------------------------------------------------------


@every_shipped
def test_monai_labels_demands(shipped):
    train_config, inference = (json.loads((shipped / "configs" / f"{name}.json").read_text()) for name in CONFIGS)
    assert "segmentation" in shipped.name
    for key in ("network_def", "preprocessing", "inferer", "postprocessing", "device", "bundle_root"):
        assert key in inference
    handlers = train_config["train"]["handlers"]
    assert isinstance(handlers, list)
    assert all(isinstance(handler, dict) for handler in handlers)
    assert "data" in train_config["train"]["dataset"]
    assert "data" in train_config["validate"]["dataset"]
    for steps in (train_config["train"]["preprocessing"], inference["preprocessing"]):
        assert steps["transforms"][0]["_target_"] == "LoadImaged"


def test_monai_label_names_the_labels_by_channel_def(trained):
    metadata = json.loads((trained.bundle / "configs" / "metadata.json").read_text())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    labels = json.loads((trained.bundle / "configs" / "inference.json").read_text())["labels"]
    assert pred["channel_def"] == {"0": "background", "1": labels[0]["name"]}
    assert pred["num_channels"] == 2


@every_member
def test_monai_label_replaces_data_and_adds_handlers(copy):
    """What its training task does: other items under `data`, one handler more, fewer epochs, the device by its name."""
    shutil.rmtree(copy / "models")
    items = [{k: str(copy.parent / "data" / f"{k}s" / f"case{n}.nii.gz") for k in ("image", "label")} for n in (0, 1)]
    parser = parsed(copy, "train", **{
        "train#dataset#data": items[:1], "validate#dataset#data": items[1:],
        "train#trainer#max_epochs": 1, "device": "cpu",
    })  # fmt: skip
    parser["train#handlers"].append({"_target_": "StatsHandler", "output_transform": "$lambda output: None"})
    parser.parse(True)
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("train#trainer").run()
    assert (copy / "models" / "model.pt").exists()
    assert "val_mean_dice" in json.loads((copy / "models" / "training.json").read_text())["validation"]


def test_without_its_savers_a_bundle_answers_a_label_map_of_the_scan(trained):
    """Compose before and after; the savers are taken out by their class, as MONAI Deploy does it."""
    parser = parsed(trained.bundle, "inference", spacing=[1.3, 1.7, 1.2])
    before, after = (parser.get_parsed_content(f"{when}processing") for when in ("pre", "post"))
    inferer = parser.get_parsed_content("inferer")
    assert isinstance(before, Compose)
    assert isinstance(after, Compose)
    assert isinstance(inferer, Inferer)
    assert isinstance(before.transforms[0], LoadImaged)
    savers = [step for step in after.transforms if isinstance(step, SaveImage | SaveImaged)]
    assert [type(step).__name__ for step in savers] == ["SaveImaged"]
    after = Compose([step for step in after.transforms if step not in savers])
    file = trained.data / "images" / "case0.nii.gz"
    data = before({"image": str(file)})
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network(trained.bundle))[0]
    pred = after(data)["pred"]
    scan = nibabel.load(file)
    np.testing.assert_allclose(pred.affine.numpy(), scan.affine, atol=1e-6)
    truth = np.asarray(nibabel.load(trained.data / "labels" / "case0.nii.gz").dataobj) > 0
    mask = pred.numpy()[0]
    assert set(np.unique(mask)) == {0, 1}
    turned = [np.flip(mask, axes) for axes in [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]]
    found = (mask[truth] == 1).mean() - (mask[~truth] == 1).mean()
    assert found > max(0.5, *((other[truth] == 1).mean() - (other[~truth] == 1).mean() for other in turned))


@every_shipped
def test_metadata_says_one_image_in_and_one_out(shipped):
    """MONAI Deploy sends each input, and sends on as an image what has the type `image`."""
    formats = json.loads((shipped / "configs" / "metadata.json").read_text())["network_data_format"]
    assert {key: value["type"] for key, value in formats["inputs"].items()} == {"image": "image"}
    assert {key: value["type"] for key, value in formats["outputs"].items()} == {"pred": "image"}
    inference = json.loads((shipped / "configs" / "inference.json").read_text())
    assert {step["keys"] for step in inference["preprocessing"]["transforms"]} == {"image"}
    assert {step["keys"] for step in inference["postprocessing"]["transforms"]} == {"pred"}


@every_member
def test_weights_are_loaded_by_a_handler_and_not_while_initialising(member):
    """`monai.bundle.load` runs `initialize` without knowing the bundle's folder."""
    parser = parsed(member.bundle, "inference", dataset_dir=str(member.data / "images"))
    assert "initialize" not in parser.get()
    assert [type(handler) for handler in parser.get_parsed_content("handlers")] == [CheckpointLoader]


@pytest.mark.parametrize("part", ["train#dataset", "validate#dataset"])
def test_what_workers_get_can_be_pickled(trained, part):
    """Windows and macOS start a worker anew and send it the dataset."""
    dataset = parsed(trained.bundle, "train").get_parsed_content(part)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[0]["image"].as_subclass(torch.Tensor), dataset[0]["image"].as_subclass(torch.Tensor))


@every_shipped
def test_the_shipped_bundle_refuses_to_train_without_data(shipped, tmp_path):
    shutil.copytree(shipped, tmp_path / shipped.name)
    with pytest.raises(BundleError, match=r"datalist\.json"):
        train(tmp_path / shipped.name, device="cpu")


def test_new_data_under_the_same_names_needs_no_new_plan(copy, tmp_path):
    write_volumes(tmp_path / "other")
    shutil.rmtree(copy / "models")
    shutil.rmtree(copy.parent / "data")
    configure(copy, patch=[16] * 3, epochs=1)
    train(copy, device="cpu", data=tmp_path / "other")
    assert (copy / "models" / "model.pt").exists()


@pytest.mark.parametrize(("key", "value"), [("spacing", [2.0, 1.0, 1.0]), ("intensity_window", [0.0, 9.0])])
def test_inference_that_sees_scans_otherwise_than_training_did_is_refused(trained, tmp_path, key, value):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.bundle, bundle)
    file = bundle / "configs" / "inference.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(BundleError, match=rf"train\.json has {key} .*inference\.json has "):
        provenance(str(bundle))
    assert provenance(str(trained.bundle))["bundle"] == "bundle"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing", [2.0, 1.0, 1.0]),
        ("intensity_window", [[0.0, 9.0]]),
        ("slice_axis", 1),
        ("labels", [{"value": 7, "name": "label_1"}]),
        ("channels", [{"name": "T1"}]),
        ("network_def", {"_target_": "fewscan.networks.UNet", "widths": [4, 8]}),
    ],
)
def test_both_configs_edited_after_the_training_are_refused(trained, tmp_path, key, value):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.bundle, bundle)
    for name in CONFIGS:
        file = bundle / "configs" / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    says = rf"training\.json: the network was trained with {key} .*inference\.json has .*--overwrite"
    with pytest.raises(BundleError, match=says):
        provenance(str(bundle))
    (bundle / "configs" / "train.json").unlink()  # passed on for inference alone
    with pytest.raises(BundleError, match=says):
        provenance(str(bundle))
    (bundle / "models" / "training.json").unlink()  # of a bundle of others
    assert provenance(str(bundle))["bundle"] == "bundle"


def test_an_image_in_memory_is_prepared_as_its_file(trained, tmp_path, monkeypatch):
    """As MONAI Deploy does it: no file, no channel axis, and nobody says where the bundle lies."""
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser()
    parser.read_config(str(trained.bundle / "configs" / "inference.json"))
    load, *rest = parser.get_parsed_content("preprocessing").transforms
    file = trained.data / "images" / "case0.nii.gz"
    scan = nibabel.load(file)
    meta = {"original_channel_dim": "no_channel", "spatial_shape": np.array(scan.shape)}
    image = MetaTensor(np.asarray(scan.dataobj), affine=torch.from_numpy(scan.affine), meta=meta)
    in_memory, from_file = Compose(rest)({"image": image}), Compose([load, *rest])({"image": str(file)})
    torch.testing.assert_close(in_memory["image"].as_tensor(), from_file["image"].as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(in_memory["image"].affine, from_file["image"].affine, rtol=0, atol=0)
    saver = parser.get_parsed_content("postprocessing").transforms[-1]
    assert type(saver).__name__ == "SaveImaged" and not list(tmp_path.iterdir())
    assert provenance(".")["model_sha256"] == "unknown"


def test_names_of_labels_may_be_edited_after_training(trained, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(trained.bundle, bundle)
    for name in CONFIGS[::-1]:
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        config["labels"][0]["name"] = "left kidney"
        file.write_text(json.dumps(config))
        assert provenance(str(bundle))["bundle"] == "bundle"
    assert provenance(str(bundle))["model_sha256"] == provenance(str(trained.bundle))["model_sha256"]


@pytest.mark.parametrize("name", ["$open('x', 'w')", "@labels", "%file.json", "lesion #1", "a::b"])
def test_text_from_data_is_never_markup_of_a_config(tmp_path, name):
    """MONAI runs what begins with `$`; a label's name comes from somebody's dataset.json."""
    data = write_volumes(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, name: 1}}))
    with pytest.raises(BundleError, match="rename it"):
        plan(data, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("place", ["output", "data"])
def test_a_path_that_monai_would_rewrite_is_refused_at_once(tmp_path, place):
    names = {"output": "bundle", "data": "data", place: "with #1"}
    data = write_volumes(tmp_path / names["data"])
    with pytest.raises(BundleError, match="rename it"):
        plan(data, tmp_path / names["output"])


def test_configs_can_be_read_in_any_encoding(tmp_path):
    data = write_volumes(tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Übergang ß": 1}}), encoding="utf-8")
    plan(data, tmp_path / "bundle")
    for file in (tmp_path / "bundle" / "configs").iterdir():
        assert file.read_bytes().isascii()
    config = json.loads((tmp_path / "bundle" / "configs" / "train.json").read_text(encoding="ascii"))
    assert config["labels"][0]["name"] == "Übergang ß"
