"""The figures of docs/ are what the code describes."""

import importlib.util
import sys

import pytest
import torch

from conftest import ROOT


@pytest.fixture
def figures(monkeypatch):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["unet", "fcn", "segnet"])
def test_what_is_committed_is_what_the_code_describes(figures, name):
    assert (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8") == figures.render(name)


def test_reads_the_papers_unet(figures):
    """Ronneberger et al. 2015, Fig. 1: channels of each map, sizes, and four skips."""
    make, size = figures.NETWORKS["unet"]
    with torch.device("meta"):
        boxes, edges = figures.read(make(), size)
    widths = [[channels for _, channels, _ in box.convolutions] for box in boxes[:-1]]
    down = [[64, 64], [128, 128], [256, 256], [512, 512], [1024, 1024]]
    assert widths == [*down, [512, 512], [256, 256], [128, 128], [64, 64, 2]]
    assert [box.size[0] for box in boxes] == [568, 280, 136, 64, 28, 52, 100, 196, 388, 388]
    assert [(edge.source, edge.target) for edge in edges if edge.kind == "copy"] == [(3, 5), (2, 6), (1, 7), (0, 8)]


def test_segnets_positions_join_equal_levels(figures):
    make, size = figures.NETWORKS["segnet"]
    with torch.device("meta"):
        boxes, edges = figures.read(make(), size)
    joined = [(edge.source, edge.target) for edge in edges if edge.kind == "positions"]
    assert joined == [(4, 5), (3, 6), (2, 7), (1, 8), (0, 9)]
    assert all(boxes[source].size == boxes[target].size for source, target in joined)
