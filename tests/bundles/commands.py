"""MONAI's own commands in processes of their own, and what a bundle's configs hold."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from conftest import ROOT

ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for line in json.loads(sys.argv.pop()):
    print("$ python -m monai.bundle", *line, flush=True)
    sys.argv[1:] = line
    runpy.run_module("monai.bundle", run_name="__main__")
"""


def _process(line: list[str], cwd: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "pipeline"),
    }  # as many threads as here: they decide the last bits
    return subprocess.Popen(
        [sys.executable, *line],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
    )  # fmt: skip


def start(command: str, *arguments: object, cwd: Path, launcher=("-m",)) -> subprocess.Popen:
    """`python -m monai.bundle COMMAND` in another folder."""
    return _process([*launcher, "monai.bundle", command, *map(str, arguments)], cwd)


def start_each(*lines: list, cwd: Path) -> subprocess.Popen:
    """Several commands as by `start`, one after the other in one process: MONAI takes seconds to be imported."""
    return _process(["-c", ONE_AFTER_THE_OTHER, json.dumps([list(map(str, line)) for line in lines])], cwd)


@functools.cache
def ended(process: subprocess.Popen) -> tuple[int, str]:
    """The exit code of a command and all that it printed; may be asked again."""
    try:
        output = process.communicate(timeout=180)[0]
    finally:
        process.kill()
    return process.returncode, output


def output_of(process: subprocess.Popen) -> str:
    """What a command that has to succeed printed."""
    code, output = ended(process)
    assert code == 0, output
    return output


def monai(command: str, *arguments: object, **options) -> str:
    """What `python -m monai.bundle COMMAND`, which has to succeed, printed."""
    return output_of(start(command, *arguments, **options))


def parsed(bundle: Path, name: str, **changes) -> ConfigParser:
    """A config of the bundle, with `changes`, on the CPU."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / f"{name}.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')", **changes})
    return parser


def network(bundle: Path) -> torch.nn.Module:
    """The bundle's trained network, to be asked."""
    net = parsed(bundle, "inference").get_parsed_content("network_def").eval()
    net.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    return net
