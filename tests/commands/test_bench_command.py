"""`timm-lc bench`."""

import json
import shlex

import pytest

from timm_lc.cli import main

SMALL = ['--batch-size', '2', '--image-size', '8', '--rounds', '1']


def test_bench_writes_its_page_numbers_and_figure(tmp_path, capsys):
    asked = ['--models', 'lc_resnet20_16x1', '--only', 'freezing, one', *SMALL, '--expansions', '1', '2']
    assert main(['bench', *asked, '--output', str(tmp_path)]) == 0
    page = (tmp_path / 'table.md').read_text()
    assert capsys.readouterr().out == page
    report = json.loads((tmp_path / 'bench.json').read_text())
    assert [row['row'] for row in report['rows']] == ['plain', 'freezing']
    assert [point['expansion'] for point in report['sweep']] == [1, 2]
    words = shlex.split(report['command'])
    assert words[:2] == ['timm-lc', 'bench']
    assert sorted(words[2:]) == sorted(asked)  # whatever the order
    assert (tmp_path / 'expansions.png').read_bytes()[:4] == b'\x89PNG'
    assert '<svg' in (tmp_path / 'expansions.svg').read_text()


def test_bench_takes_model_arguments_and_speed(tmp_path, capsys):
    asked = ['--model-kwargs', 'num_classes=3', '--amp', '--channels-last', '--expansions']
    assert (
        main(['bench', '--models', 'lc_resnet20_16x1', '--only', 'plain', *SMALL, *asked, '--output', str(tmp_path)])
        == 0
    )
    page = capsys.readouterr().out
    assert '--model-kwargs num_classes=3 ' in page
    assert '1 interleaved rounds, bfloat16, channels_last, eager' in page
    assert not (tmp_path / 'expansions.png').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--models', 'resnet18'], "`models` must be lc_ models, got 'resnet18'"),
        (['--models', 'lc_resnet81'], "unknown model 'lc_resnet81'; did you mean"),
        (['--device', 'nonsense'], '`--device nonsense`'),
        (['--rounds', '0'], '`rounds` must be a positive integer, got 0'),
        (['--only', '('], '`--only (` is no regular expression'),
        (['--only', 'frozen'], '`--only frozen` matches no row of lc_resnet20_16x128: they are plain, folded, '),
        (['--models', 'lc_test_resnet', '--expansions', '2'], '`--expansions` are of LC-Blocks, of which no row of'),
        (['--expansions', '0'], '`expansions` must be positive integers, got 0'),
    ],
)
def test_bench_refuses_what_it_cannot_measure(arguments, words, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['bench', *arguments])
    assert words in capsys.readouterr().err
