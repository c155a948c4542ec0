"""A sweep gives the accuracies of networks pruned one by one, and files that are whole or absent."""

import copy
import json
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_lc import prune_pointwise
from timm_lc.paper.sweep import Point, sweep, write_sweep

CPU = torch.device('cpu')
POINTS = [Point(0.0, 90.0, 0, 100), Point(0.5, 87.5, 40, 60), Point(0.9, 12.5, 72, 28)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('lc_resnet20_16x2', num_classes=3).eval()


@pytest.fixture
def batches():
    images = torch.randn(4, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [(part, torch.arange(6) % 3) for part in images]


def test_each_point_is_the_network_pruned_from_its_own_weights(model, batches):
    before = copy.deepcopy(model.state_dict())
    points = sweep(model, [0.9, 0.0, 0.5], batches, CPU)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    size = sum(c.weight.numel() for c in model.modules() if getattr(c, 'kernel_size', None) == (1, 1))
    for point, amount in zip(points, [0.9, 0.0, 0.5], strict=True):
        pruned = prune_pointwise(copy.deepcopy(model), amount)
        with torch.no_grad():
            right = [int((pruned(images).argmax(1) == labels).sum()) for images, labels in batches]
        assert point.accuracy == pytest.approx(100 * sum(right) / 24)
        assert (point.amount, point.zeros) == (amount, round(amount * size))
    assert len({point.nonzero + point.zeros for point in points}) == 1


def test_bad_amounts_are_named_before_anything_is_computed(model):
    with pytest.raises(ValueError, match=r'`amount` must be in \[0, 1\), got 1\.0'):
        sweep(model, [0.5, 1.0], None, CPU)


def test_table_and_figures_are_written_in_full(tmp_path):
    paths = write_sweep(POINTS, tmp_path / 'new' / 'lc.v1', model='lc_resnet20_16x2', images=24)
    assert paths == [tmp_path / 'new' / f'lc.v1.{suffix}' for suffix in ('json', 'png', 'svg')]
    assert sorted(tmp_path.joinpath('new').iterdir()) == sorted(paths)
    table = json.loads(paths[0].read_text())
    assert (table['model'], table['images']) == ('lc_resnet20_16x2', 24)
    assert [Point(**point) for point in table['points']] == POINTS
    assert np.asarray(Image.open(paths[1]).convert('L')).std() > 1
    assert ET.parse(paths[2]).getroot().tag.endswith('svg')


def test_a_failing_figure_leaves_the_older_one(tmp_path, monkeypatch):
    (_, png, _) = write_sweep(POINTS, tmp_path / 'lc')
    before = png.read_bytes()

    def fail(figure, path, **kwargs):
        path.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        write_sweep(POINTS[:1], tmp_path / 'lc')
    assert png.read_bytes() == before
    assert not list(tmp_path.glob('*.partial*'))


def test_without_matplotlib_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'timm_lc\[plots\]'"):
        write_sweep(POINTS, tmp_path / 'lc')
    assert not list(tmp_path.iterdir())
