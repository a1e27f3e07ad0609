"""FCN in stages: each stage starts where the coarser one ended, and an interruption changes nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from conftest import configure, write_volumes
from fewscan.bundle import read_json
from fewscan.cli import main
from fewscan.errors import BundleError
from fewscan.files import sha256
from fewscan.networks import FCN
from fewscan.runs.estimate import in_words, write_estimate
from fewscan.runs.segment import segment
from fewscan.runs.validate import _budget
from fewscan.training import TrainingRun
from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.stages import stages_of, train_stages

NARROW = {"widths": [4, 4, 4, 4, 4], "fc_width": 8}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """FCN-8s with dropout, four epochs of two steps, one held-out case."""
    home = tmp_path_factory.mktemp("planned")
    plan(write_volumes(home / "data"), home / "bundle", validation=1, network="fcn")
    return configure(home / "bundle", NARROW, patch=[16, 16, 16], steps_per_epoch=2)


@pytest.fixture
def bundle(planned, tmp_path):
    """An untrained copy beside its data."""
    shutil.copytree(planned.parent, tmp_path / "home")
    return tmp_path / "home" / "bundle"


@pytest.fixture(scope="module")
def staged(planned, tmp_path_factory):
    """A copy, trained in stages by the command; never to be changed by a test."""
    home = tmp_path_factory.mktemp("staged") / "home"
    shutil.copytree(planned.parent, home)
    assert main(["train", str(home / "bundle"), "--stages", "--device", "cpu"]) == 0
    return home / "bundle"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def network(folder: Path, variant: str) -> FCN:
    made = FCN(3, 1, 2, variant, **NARROW, norm="batch", strides=[2, 2, 2, 1, 1], learn_upsampling=True)
    made.load_state_dict(weights(folder))
    return made.eval()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def record(folder: Path) -> dict:
    return read_json(folder / "training.json")


def interrupt_in(monkeypatch, folder: Path, step: int) -> None:
    """Ctrl-C in the middle of that step of the training that writes to `folder`."""
    before = TrainingRun.attach

    def attach(self, engine):
        before(self, engine)

        def press(engine):
            if self.folder == folder and engine.state.iteration == step:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_STARTED, press)

    monkeypatch.setattr(TrainingRun, "attach", attach)


def test_the_command_ends_with_an_8s_that_came_from_16s_and_32s(staged):
    models = staged / "models"
    folders = {"32s": models / "32s", "16s": models / "16s", "8s": models}
    for variant, folder in folders.items():
        assert record(folder)["settings"]["network_def"]["variant"] == variant
        assert all(torch.isfinite(value).all() for value in weights(folder).values())
        assert network(folder, variant)  # loads strictly: no weight is missing, none is left over
    assert [record(folder)["epochs"] for folder in folders.values()] == [1, 1, 2]  # of four
    origins = [record(folder)["settings"].get("start_from (sha256)") for folder in folders.values()]
    assert origins == [None, sha256(models / "32s" / "model.pt"), sha256(models / "16s" / "model.pt")]
    files = ["best.pt", "history.csv", "model.pt", "training.html", "training.json"]
    assert sorted(file.name for file in (models / "32s").iterdir()) == files
    assert sorted(file.name for file in models.iterdir()) == ["16s", "32s", *files]


def test_a_fold_is_trained_as_long_as_all_stages_together_and_it_is_said(staged, bundle):
    """Four epochs of two steps, shared by three stages; the same with 10 minutes of each; then without one of them."""
    models, config = bundle / "models", read_json(bundle / "configs" / "train.json")
    shutil.copytree(staged / "models", models, dirs_exist_ok=True)
    dice = {"mean": 0.8, "sd": None, "worst": 0.7}
    estimate = {"dice": dice, "cases": 4, "groups": 4, "scheme": "leave-one-out", "blocks": False, "models": []}
    staging = "each fold was trained in one go, the bundle in stages"

    def told(budget):
        write_estimate(bundle, {**estimate, "budget": budget, "warnings": []})
        return in_words(bundle).split("; ")[1:]

    assert _budget(bundle, config, None) == ({"epochs": 4, "steps_per_epoch": 2}, "8 steps")
    assert told("8 steps") == [staging]
    assert told("4 steps") == [staging, "each fold was trained for 4 steps, the bundle for 8 steps"]
    for name in ("32s", "16s", "."):
        file = models / name / "training.json"
        file.write_text(json.dumps({**read_json(file), "minutes_given": 10.0}))
    assert _budget(bundle, config, None) == ({"minutes": 30.0}, "30 minute(s)")
    assert told("30 minute(s)") == [staging]
    assert told("10 minute(s)")[1:] == ["each fold was trained for 10 minute(s), the bundle for 30 minute(s)"]
    shutil.rmtree(models / "16s")  # how long it took is not known any more
    assert _budget(bundle, config, None) == ({"epochs": 4, "steps_per_epoch": 2}, "8 steps")
    assert told("10 minute(s)") == [staging]


def test_the_last_model_segments_as_any_other(staged, tmp_path):
    report = segment(staged.parent / "data" / "images", staged, tmp_path / "masks", device="cpu", overlays=False)
    assert report.exit_code == 0
    assert len(list((tmp_path / "masks").glob("*_seg.nii.gz"))) == 4


def test_without_learning_each_stage_answers_what_the_coarser_one_answers(bundle):
    """And without norm, whose running statistics go on: the weights handed over are all that counts."""
    configure(bundle, {**NARROW, "norm": None}, learning_rate=0.0, epochs=3)
    train_stages(bundle, device="cpu")
    models, answers = bundle / "models", {}
    torch.manual_seed(0)
    image = torch.randn(1, 1, 19, 17, 16)
    for variant, folder in (("32s", models / "32s"), ("16s", models / "16s"), ("8s", models)):
        made = FCN(3, 1, 2, variant, **NARROW, strides=[2, 2, 2, 1, 1], learn_upsampling=True)
        made.load_state_dict(weights(folder))
        answers[variant] = made.eval()(image).detach()
    # pool4 and pool5 keep the size in 3D, so that all three upsample by 8 in one step and answer the same
    torch.testing.assert_close(answers["16s"], answers["32s"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(answers["8s"], answers["32s"], rtol=1e-5, atol=1e-6)
    assert answers["32s"].std() > 1e-3
    coarse, fine = weights(models / "32s"), weights(models)
    same = [name for name in coarse if not name.startswith("upscore.")]
    assert all(torch.equal(coarse[name], fine[name]) for name in same)


@pytest.mark.parametrize(("folder", "step"), [("16s", 1), ("16s", 2), (".", 1), (".", 4)])
def test_an_interrupted_training_goes_on_in_its_stage_to_the_same_weights(staged, bundle, monkeypatch, folder, step):
    """Between two stages (step 1) and within one: bit for bit as in one go, the finished stages untouched."""
    models = bundle / "models"
    with monkeypatch.context() as patched:
        interrupt_in(patched, models / folder, step)
        with pytest.raises(KeyboardInterrupt):
            train_stages(bundle, device="cpu")
    assert not (models / "model.pt").exists()
    written = (models / "32s" / "model.pt").stat().st_mtime_ns
    train_stages(bundle, device="cpu")
    assert (models / "32s" / "model.pt").stat().st_mtime_ns == written
    for name in ("32s", "16s", "."):
        assert equal(weights(models / name), weights(staged / "models" / name))
        assert (models / name / "history.csv").read_text() == (staged / "models" / name / "history.csv").read_text()


def test_plain_monai_trains_the_same_stage(staged, bundle):
    shutil.copytree(staged / "models" / "32s", bundle / "models" / "32s")
    override = {"bundle_root": bundle, "network_def#variant": "16s", "epochs": 1, "device": "$torch.device('cpu')"}
    override |= {"start_from": bundle / "models" / "32s" / "model.pt", "ckpt_dir": bundle / "models" / "16s"}
    options = [text for name, value in override.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "train.json")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    assert equal(weights(bundle / "models" / "16s"), weights(staged / "models" / "16s"))


def test_overwrite_starts_at_32s_anew_and_goes_on_when_given_again(staged, bundle, monkeypatch):
    """Another seed over a trained bundle, interrupted in 16s: the old model stays until the new one is complete."""
    models, other = bundle / "models", bundle.parent / "other"
    shutil.copytree(bundle, other)
    shutil.copytree(staged / "models", models, dirs_exist_ok=True)
    with pytest.raises(BundleError, match=r"model\.pt: this bundle is trained already; give `--overwrite`"):
        train_stages(bundle, device="cpu")
    for one in (bundle, other):
        configure(one, NARROW, patch=[16, 16, 16], steps_per_epoch=2, seed=5)
    with monkeypatch.context() as patched:
        interrupt_in(patched, models / "16s", 2)
        with pytest.raises(KeyboardInterrupt):
            train_stages(bundle, device="cpu", overwrite=True)
    assert equal(weights(models), weights(staged / "models"))
    written = (models / "32s" / "model.pt").stat().st_mtime_ns
    train_stages(bundle, device="cpu", overwrite=True)
    assert (models / "32s" / "model.pt").stat().st_mtime_ns == written
    train_stages(other, device="cpu")
    for name in ("32s", "16s", "."):
        assert equal(weights(models / name), weights(other / "models" / name))
        assert not equal(weights(models / name), weights(staged / "models" / name))


def test_a_coarser_stage_of_other_cases_is_refused(staged, bundle):
    """A case that 32s was trained on and that is held out since would make the score of 16s dishonest."""
    shutil.copytree(staged / "models" / "32s", bundle / "models" / "32s")
    file = bundle / "configs" / "datalist.json"
    cases = read_json(file)
    file.write_text(json.dumps({"training": cases["training"][1:], "validation": cases["training"][:1]}))
    with pytest.raises(BundleError, match=r"32s.model\.pt: was trained with cases \(sha256\).*remove the file"):
        train_stages(bundle, device="cpu")


def test_a_finer_stage_may_learn_at_a_lower_rate(staged, bundle):
    """As in the paper, and where only it went astray: the coarser one stays as it was trained, at 0.02."""
    models = bundle / "models"
    shutil.copytree(staged / "models" / "32s", models / "32s")
    configure(bundle, NARROW, patch=[16, 16, 16], steps_per_epoch=2, learning_rate=0.0002)
    train_stages(bundle, device="cpu")
    rates = [record(models / name)["settings"]["learning_rate"] for name in ("32s", "16s", ".")]
    assert rates == [0.02, 0.0002, 0.0002]
    assert equal(weights(models / "32s"), weights(staged / "models" / "32s"))
    assert not equal(weights(models / "16s"), weights(staged / "models" / "16s"))


def test_a_state_that_started_from_other_weights_is_refused(staged, bundle, monkeypatch):
    models = bundle / "models"
    shutil.copytree(staged / "models" / "32s", models / "32s")
    with monkeypatch.context() as patched:
        interrupt_in(patched, models, 3)
        with pytest.raises(KeyboardInterrupt):
            train_stages(bundle, device="cpu")
    torch.save({name: value / 2 for name, value in weights(models / "16s").items()}, models / "16s" / "model.pt")
    with pytest.raises(BundleError, match=r"training_state\.pt: was written with start_from \(sha256\)"):
        train_stages(bundle, device="cpu")


def test_minutes_are_shared_equally_and_epochs_add_up(bundle, monkeypatch):
    configure(bundle, {**NARROW, "variant": "16s"}, epochs=7, val_interval=1000)
    assert [(stage.variant, stage.epochs) for stage in stages_of(bundle)] == [("32s", 3), ("16s", 4)]
    configure(bundle, {**NARROW, "variant": "8s"}, epochs=1, val_interval=1000)  # the time alone counts
    before, shares = TrainingRun.attach, []
    monkeypatch.setattr(TrainingRun, "attach", lambda run, engine: shares.append(run.minutes) or before(run, engine))
    train_stages(bundle, minutes=0.03, device="cpu")
    assert shares == [pytest.approx(0.01)] * 3
    assert [record(bundle / "models" / name)["settings"]["network_def"]["variant"] for name in ("32s", "16s", ".")] == [
        "32s", "16s", "8s",
    ]  # fmt: skip


def test_overwrite_trains_every_stage_anew_after_a_training_without_stages(staged, bundle):
    """The coarser stages of before are no part of it, whatever was trained since."""
    models = bundle / "models"
    shutil.copytree(staged / "models", models, dirs_exist_ok=True)
    train(bundle, device="cpu", overwrite=True)
    written = (models / "32s" / "model.pt").stat().st_mtime_ns
    train_stages(bundle, device="cpu", overwrite=True)
    assert (models / "32s" / "model.pt").stat().st_mtime_ns > written
    assert equal(weights(models), weights(staged / "models"))


def test_a_training_begun_in_stages_is_not_ended_without_them(staged, bundle, capsys):
    shutil.copytree(staged / "models" / "32s", bundle / "models" / "32s")
    assert main(["train", str(bundle), "--device", "cpu"]) == 1
    assert "was begun with --stages" in capsys.readouterr().err
    assert not (bundle / "models" / "model.pt").exists()


def test_the_variant_may_be_left_out(bundle):
    """It is 8s then, in training and in what `segment` compares."""
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        config = read_json(file)
        del config["network_def"]["variant"]
        file.write_text(json.dumps(config))
    train(bundle, device="cpu")
    report = segment(bundle.parent / "data" / "images", bundle, bundle.parent / "masks", device="cpu", overlays=False)
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("network", "settings", "says"),
    [
        ({"variant": "32s"}, {}, "network_def has variant 32s, but stages end with 16s or 8s"),
        ({}, {"epochs": 2}, "3 stages cannot share epochs 2; set 3 or more"),
    ],
)
def test_a_bundle_without_stages_is_refused(bundle, network, settings, says):
    configure(bundle, {**NARROW, **network}, **settings)
    with pytest.raises(BundleError, match=says):
        train_stages(bundle, device="cpu")


def test_another_network_is_refused_by_the_command_and_by_its_config(bundle, capsys):
    shutil.rmtree(bundle)
    plan(bundle.parent / "data", bundle)
    assert main(["train", str(bundle), "--stages", "--device", "cpu"]) == 1
    assert re.search(r"train\.json: fewscan\.networks\.UNet has no stages", capsys.readouterr().err)
    configure(bundle, patch=[16, 16, 16], start_from=str(bundle / "model.pt"))
    with pytest.raises(BundleError, match=r"UNet has no stages.*set start_from to null"):
        train(bundle, device="cpu")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "holds no weights"),
        ("16s", "FCN-16s goes on from a coarser network, but these are weights of FCN-16s"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(staged, bundle, content, says):
    file = bundle.parent / "weights.pt"
    if content == "16s":
        shutil.copy(staged / "models" / "16s" / "model.pt", file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"weights\.pt: {says}"):
        train(bundle, device="cpu", settings={"network_def::variant": "16s", "start_from": str(file)})
