"""The second version's figures and tables: its numbers, its networks, and what its measures measure."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from timm_lc.cli import main
from timm_lc.paper.catalogue import EXPERIMENTS, find
from timm_lc.paper.experiment import FROZEN, GAP, LEARNABLE, PLAIN
from timm_lc.paper.imagenet import write_commands
from timm_lc.paper.measures import MEASURES, UNTRAINED
from timm_lc.paper.printed_second import HOURS

SECOND = {name: experiment for name, experiment in EXPERIMENTS.items() if name.startswith('v2-')}


def printed(name, key='accuracy'):
    return {(p.series, p.x): (p.low, p.std) for p in EXPERIMENTS[name].printed if p.key == key}


def test_printed_numbers_are_the_papers():
    assert printed('v2-table1-cifar100') == {
        (PLAIN, 'CIFAR-100'): (60.84, 0.52), (LEARNABLE, 'CIFAR-100'): (59.44, 0.55),
        (FROZEN, 'CIFAR-100'): (61.31, 0.74), (GAP, 'CIFAR-100'): (1.87, None),
    }  # fmt: skip
    assert printed('v2-table1')[PLAIN, 'CIFAR-10'] == (91.60, 0.23)
    assert printed('v2-table1-svhn')[FROZEN, 'SVHN'] == (96.34, 0.11)
    assert printed('v2-table1-fashion_mnist')[LEARNABLE, 'Fashion-MNIST'] == (93.44, 0.18)
    assert printed('v2-fig4a')[PLAIN, 1] == (91.60, 0.23)
    assert printed('v2-fig4a')[FROZEN, 128] == (91.89, 0.10)
    table2 = printed('v2-table2', 'top1')
    assert table2[FROZEN, 'no LC-Block'] == (37.85, None)
    assert table2[LEARNABLE, 'E = 64'] == (71.94, None)
    assert (LEARNABLE, 'E = 128') not in table2
    assert printed('v2-table2', 'top5')[FROZEN, 'E = 128'] == (90.64, None)
    assert printed('v2-table3')[LEARNABLE, 'batch norm and ReLU'] == (94.72, 0.16)
    assert sum(HOURS.values()) == pytest.approx(2901.6, abs=0.4)  # its parts are rounded


def test_every_number_says_that_it_is_of_the_second_version():
    for experiment in SECOND.values():
        assert all(p.place.startswith('version 2') for p in experiment.printed), experiment.id
        assert all(text.startswith('version 2') for text in experiment.says), experiment.id
        assert {p.x for p in experiment.printed} <= {variant.x for variant in experiment.variants}


def test_every_variant_is_a_network_that_can_be_built():
    known = {str((v.model, v.model_kwargs)): v for experiment in SECOND.values() for v in experiment.variants}
    with torch.device('meta'):
        for variant in known.values():
            if '260' in variant.model or variant.model_kwargs.get('depth') == 260:
                continue  # seconds each, and as the shallower ones
            timm.create_model(variant.model, **variant.model_kwargs)


def test_plain_network_is_one_run_along_the_axis():
    for name in ('fig1', 'fig4', 'fig6', 'v2-fig4a'):
        plain = [variant for variant in EXPERIMENTS[name].variants if variant.series == PLAIN]
        assert len({variant.x for variant in plain}) == len(plain) >= 8
        assert {(v.model, str(v.model_kwargs)) for v in plain} == {('lc_lowres_resnet20', "{'freeze_spatial': False}")}
    kernels = {
        v.facet: v.model_kwargs.get('kernel_size', 3) for v in EXPERIMENTS['fig11'].variants if v.series == PLAIN
    }
    assert kernels == {'k = 3': 3, 'k = 5': 5, 'k = 7': 7, 'k = 9': 9}


def test_frozen_goes_beyond_128_and_counts_are_of_the_pointwise_weights():
    variants = {v.x: v for v in EXPERIMENTS['v2-fig4b'].variants if v.series == FROZEN}
    assert [x for x in variants if x > 128] == [256, 512]
    rest = 282  # batch norms and classifier do not grow with E
    small, large = (UNTRAINED['counts'](variants[e], torch.device('cpu'))['learnable'] for e in (1, 2))
    outputs = np.array([16] * 7 + [32] * 6 + [64] * 6)
    assert large - small == (outputs**2).sum()
    assert small > (outputs**2).sum() + rest


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_last_layers_entropy_is_of_its_kernels_components(kernel_size):
    model = timm.create_model('lc_resnet_cifar', depth=8, width=4, kernel_size=kernel_size, freeze_spatial=False)
    value = MEASURES['entropy_last'](model, None)['entropy_last']
    kernels = model.layer3[0].conv2.weight.detach().double().numpy().reshape(-1, kernel_size**2)
    variance = np.linalg.svd(kernels - kernels.mean(0), compute_uv=False) ** 2
    ratio = variance / variance.sum()
    assert value == pytest.approx(-(ratio * np.log10(ratio)).sum(), rel=1e-5)
    if kernel_size == 3:
        threshold = 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(256) - 2.30436435))) - 0.31050834
        normalized = MEASURES['entropy_last_normalized'](model, None)['entropy_last_normalized']
        assert normalized == pytest.approx(value / threshold, rel=1e-5)


def test_imagenet_commands_are_of_every_expansion(tmp_path):
    write_commands(find('v2-table2'), tmp_path / 'commands.sh')
    lines = [line for line in (tmp_path / 'commands.sh').read_text().splitlines() if line.startswith('train ')]
    assert len(lines) == len({line.split()[1] for line in lines}) == 9
    assert 'train lc_resnet18d-frozen --model lc_resnet18d' in lines
    assert (
        'train lc_resnet18d-x64-learnable --model lc_resnet18d --model-kwargs expansion=64 freeze_spatial=False'
        in lines
    )


def test_hours_are_told_where_they_are_added_up():
    with pytest.raises(ValueError, match='v2-table4 is of hours: `timm-lc report`'):
        find('v2-table4')


def test_list_has_every_entry_of_both_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['reproduce', '--list', '--device', 'cpu']) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-2]]
    assert listed == list(EXPERIMENTS)
    assert not list(Path().iterdir())
