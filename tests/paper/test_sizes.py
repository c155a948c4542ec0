"""The table of steps gives the paper's counts, and bytes of files that `save_pretrained` writes."""

import re

import pytest
import timm
import torch

from timm_lc import count_parameters, fold, prune_pointwise, save_pretrained
from timm_lc.cli import main
from timm_lc.paper.sizes import measure_steps, steps_page

SMALL = 'lc_resnet20_16x4'
TITLES = [
    'Baseline', '+ Freezing', '+ Weight sharing', '+ Recycled WS (1/16)', '+ 1x1 pruning (0.7)', '+ float16 values',
    'the recycled one, folded',
]  # fmt: skip


def rows_of(page):
    """Return the cells of a page's table, by the title of the row."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in page.splitlines() if line[:1] == '|']
    return {title: cells for title, *cells in rows}


@pytest.fixture(scope='module')
def rows():
    return rows_of(steps_page('lc_resnet20_16x128'))


def test_steps_of_table_1_stand_beside_the_paper_s(rows):
    assert list(rows)[2:] == TITLES
    counts = {title: (cells[0], cells[1], cells[4]) for title, cells in rows.items()}
    learnable = '4,166,314'  # all by the paper's definitions
    assert counts['Baseline'] == ('38,431,402', '38,431,402', '38,431,402')
    assert counts['+ Freezing'] == ('38,431,402', '38,431,402', learnable)
    assert counts['+ Weight sharing'] == ('8,884,906', '8,884,906', learnable)
    assert counts['+ Recycled WS (1/16)'] == ('4,461,226', '4,461,226', learnable)
    assert counts['+ 1x1 pruning (0.7)'] == ('4,461,226', '1,546,359', learnable)
    printed = {title: (cells[2], cells[5], cells[9]) for title, cells in rows.items()}
    assert printed['Baseline'] == ('38.4 M', '38.4 M', '146.66')  # tables 1 and 3
    assert printed['+ Recycled WS (1/16)'] == ('4.6 M', '4.2 M', '17.74')
    assert printed['+ 1x1 pruning (0.7)'] == ('1.7 M', '4.2 M', '17.74')
    assert printed['+ Weight sharing'] == ('', '', '33.84')
    assert printed['+ float16 values'] == ('', '', '')
    limits = dict(zip(TITLES[3:], (16.8e6, 5.8e6, 3.2e6, 1.2e6), strict=True))
    assert {title: int(rows[title][7].replace(',', '')) <= limit for title, limit in limits.items()} == dict.fromkeys(
        limits, True
    )


def test_deviations_are_from_the_paper_s_number(rows):
    for title, cells in rows.items():
        for ours, paper, deviation in ((1, 2, 3), (4, 5, 6), (8, 9, 10)):
            if title in TITLES and cells[paper]:
                number = float(cells[ours].replace(',', '')) / (1 if ours == 8 else 1e6)
                expected = 100 * (number / float(cells[paper].removesuffix(' M')) - 1)
                assert float(cells[deviation].removesuffix(' %')) == pytest.approx(expected, abs=0.06)


def test_steps_are_networks_that_are_built_and_saved(tmp_path):
    steps = {step.title: step for step in measure_steps(SMALL, num_classes=5, seed=7)}
    assert list(steps) == TITLES
    recycled = timm.create_model(SMALL, num_classes=5, seed=7, share_weights=True, recycle=16)
    sparse = {'sparse': True, 'dtype': torch.float16}
    models = {
        'Baseline': (timm.create_model(SMALL, num_classes=5, freeze_spatial=False), {}),
        '+ Weight sharing': (timm.create_model(SMALL, num_classes=5, seed=7, share_weights=True), {}),
        'the recycled one, folded': (fold(recycled), {}),
        '+ float16 values': (prune_pointwise(recycled, 0.7), sparse),
    }
    for title, (model, form) in models.items():
        counts, step = count_parameters(model), steps[title]
        assert (step.total, step.learnable) == (counts.total, counts.learnable)
        assert step.nonzero == pytest.approx(counts.nonzero, abs=5)  # a few weights may be drawn as 0
        path = save_pretrained(model, tmp_path / title, **form) / 'model.safetensors'
        assert step.bytes == pytest.approx(path.stat().st_size, abs=100)  # a layer's zeros vary with its weights


def test_what_a_step_says_wins_and_the_rest_is_kept():
    plain = measure_steps(SMALL, num_classes=5)
    for kwargs in ({'share_weights': True, 'recycle': 4}, {'share_weights': True, 'shared_length': 1000}, {'seed': 3},
                   {'freeze_spatial': False}):  # fmt: skip
        assert [step[:4] for step in measure_steps(SMALL, num_classes=5, **kwargs)] == [step[:4] for step in plain]
    assert measure_steps(SMALL, num_classes=9)[0].total == plain[0].total + 4 * 65


def test_other_networks_have_no_paper_beside_them(capsys):
    assert main(['info', SMALL, '--steps', '--model-kwargs', 'num_classes=5']) == 0
    page = capsys.readouterr().out
    assert page.startswith(f'# Weights and bytes of {SMALL}\n')
    assert f'`timm-lc info {SMALL} --steps --model-kwargs num_classes=5`' in page
    assert 'paper' not in page
    assert {len(cells) for cells in rows_of(page).values()} == {5}


def test_the_global_generator_stays():
    before = torch.get_rng_state()
    measure_steps(SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('resnet18', "the steps are for lc_ models, got 'resnet18'"),
        ('lc_resnet20_16x5', 'LCResNets of other sizes are lc_resnet_cifar'),
    ],
)
def test_what_has_no_steps_is_named(name, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['info', name, '--steps'])
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
