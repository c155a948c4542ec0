"""The command `timm-lc prune`."""

import json
import re

import pytest
import timm
import torch

from timm_lc import prune_pointwise, save_pretrained
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.train_run import read_facts
from timm_lc.cli import main


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Load images without workers, which are slow to start."""
    monkeypatch.setattr('timm_lc.analysis.evaluation.os.cpu_count', lambda: 0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model('lc_resnet20_16x4', num_classes=3, share_weights=True, recycle=16).eval()


@pytest.fixture
def saved(model, tmp_path):
    return str(save_pretrained(model, tmp_path / 'saved'))


@pytest.fixture
def data(tmp_path, images_in):
    images_in(tmp_path / 'data' / 'validation')
    return str(tmp_path / 'data')


def same(model, other):
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == key and one.equal(two) for (name, one), (key, two) in pairs)


def refuse(argv, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(['prune', *argv])
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_a_folder_is_pruned_stored_sparse_and_reported(model, saved, tmp_path, capsys):
    assert main(['prune', saved, '--amount', '0.7', '--output', str(tmp_path / 'out')]) == 0
    pruned = prune_pointwise(model, 0.7)
    assert same(load_model(tmp_path / 'out'), pruned)
    out = capsys.readouterr().out
    weights = [(name, c.weight) for name, c in pruned.named_modules() if getattr(c, 'kernel_size', None) == (1, 1)]
    for name, weight in weights:
        zeros = int((weight == 0).sum())
        row = rf'{re.escape(name)} +{weight.numel():,} +{zeros:,} +{zeros / weight.numel():.2%}'
        assert re.search(f'^{row}$', out, re.MULTILINE)
    size = sum(weight.numel() for _, weight in weights)
    assert re.search(rf'^all +{size:,} +{round(0.7 * size):,} +70\.00%$', out, re.MULTILINE)
    before, after = (int(text.replace(',', '')) for text in re.search('bytes: (.*) before, (.*) after', out).groups())
    assert before == (tmp_path / 'saved/model.safetensors').stat().st_size
    assert after == (tmp_path / 'out/model.safetensors').stat().st_size
    assert '(sparse, float32)' in out


def test_dense_and_sparse_hold_the_same(saved, tmp_path):
    for form in ('dense', 'sparse'):
        flags = ['--dense'] if form == 'dense' else []
        main(['prune', saved, '--amount', '0.7', '--output', str(tmp_path / form), *flags])
    assert same(load_model(tmp_path / 'dense'), load_model(tmp_path / 'sparse'))
    sizes = [(tmp_path / form / 'model.safetensors').stat().st_size for form in ('dense', 'sparse')]
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_values_are_rounded_to_the_type_and_zeros_stay(dtype, model, saved, tmp_path):
    main(['prune', saved, '--amount', '0.7', '--dtype', dtype, '--output', str(tmp_path / 'out')])
    expected = prune_pointwise(model, 0.7).state_dict()
    for name, tensor in load_model(tmp_path / 'out').state_dict().items():
        matrix = expected[name].is_floating_point() and expected[name].ndim > 1
        assert tensor.equal(expected[name].to(getattr(torch, dtype)).float() if matrix else expected[name])


def test_a_file_of_weights_alone(model, saved, tmp_path):
    path = tmp_path / 'new' / 'pruned.safetensors'
    assert main(['prune', saved, '--amount', '0.5', '--output', str(path)]) == 0
    assert [found.name for found in path.parent.iterdir()] == ['pruned.safetensors']
    arguments = {'num_classes': 3, 'share_weights': True, 'recycle': 16}
    assert same(load_model(path, 'lc_resnet20_16x4', **arguments), prune_pointwise(model, 0.5))
    fine_tuned = timm.create_model('lc_resnet20_16x4', **arguments)
    timm.models.load_checkpoint(fine_tuned, str(path))  # as train.py's --initial-checkpoint
    assert same(fine_tuned, model)


def test_the_file_that_timm_looks_for_gets_its_config(model, saved, tmp_path):
    main(['prune', saved, '--amount', '0.5', '--output', str(tmp_path / 'out/model.safetensors')])
    assert same(load_model(tmp_path / 'out'), prune_pointwise(model, 0.5))


def test_a_file_that_does_not_tell_its_architecture(model, tmp_path):
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth.tar')
    argv = ['prune', str(tmp_path / 'weights.pth.tar'), '--amount', '0.5', '--output', str(tmp_path / 'out')]
    kwargs = ['--model-kwargs', 'num_classes=3', 'share_weights=True', 'recycle=16']
    assert main([*argv, '--model', 'lc_resnet20_16x4', *kwargs]) == 0
    assert same(load_model(tmp_path / 'out'), prune_pointwise(model, 0.5))


def test_a_stock_network_is_stored_dense(tmp_path, capsys, stock, stock_folders):
    folder = save_pretrained(stock('test_efficientnet'), tmp_path / 'stock')
    assert main(['prune', str(folder), '--amount', '0.5', '--output', str(tmp_path / 'out')]) == 0
    assert 'dense, as stock networks load no other form' in capsys.readouterr().out
    loaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert same(loaded, prune_pointwise(stock('test_efficientnet'), 0.5))


def test_sweep_writes_a_table_and_figures(model, saved, data, tmp_path, capsys):
    argv = ['prune', saved, '--amounts', '0:0.9:0.3', '--data-dir', data, '--output', str(tmp_path / 'out')]
    assert main(argv) == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'pruning.json', 'pruning.png', 'pruning.svg'}
    table = json.loads((tmp_path / 'out/pruning.json').read_text())
    assert (table['model'], table['images']) == ('lc_resnet20_16x4', 12)
    assert [point['amount'] for point in table['points']] == [0.0, 0.3, 0.6, 0.9]
    out = capsys.readouterr().out
    for point in table['points']:
        assert f'{point["amount"]:.2%} {point["accuracy"]:>9.2f}% {point["nonzero"]:>13,}' in out
    assert same(load_model(saved), model)


def test_a_sweep_beside_a_pruned_file(saved, data, tmp_path):
    path = tmp_path / 'out' / 'pruned.safetensors'
    argv = ['--amount', '0.7', '--amounts', '0.5:0.9:0.4', '--data-dir', data, '--limit', '6', '--output', str(path)]
    assert main(['prune', saved, *argv]) == 0
    assert {found.name for found in path.parent.iterdir()} == {
        f'pruned.{s}' for s in ('safetensors', 'json', 'png', 'svg')
    }
    table = json.loads(path.with_suffix('.json').read_text())
    assert table['images'] == 6
    assert [point['amount'] for point in table['points']] == [0.5, 0.7, 0.9]


def test_accuracy_before_and_after_without_a_sweep(saved, data, tmp_path, capsys):
    assert main(['prune', saved, '--amount', '0.7', '--data-dir', data, '--output', str(tmp_path / 'out')]) == 0
    assert re.search(r'0\.00% .*\n +70\.00% ', capsys.readouterr().out)
    assert not (tmp_path / 'out/pruning.json').exists()


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'give `--amount`, the share to prune, `--amounts`'),
        (['--amount', '1.5'], r'`amount` must be in \[0, 1\), got 1\.5'),
        (['--amount', 'much'], "argument --amount: invalid float value: 'much'"),
        (['--amounts', '0:1:0.1'], r"argument --amounts: must rise within \[0, 1\) by a positive step, got '0:1:0\.1'"),
        (['--amounts', '0.5:0:0.1'], 'must rise within'),
        (['--amounts', '0:0.5:0'], 'must rise within'),
        (['--amounts', '0:nan:0.1'], 'must rise within'),
        (['--amounts', '0.5'], "must be START:STOP:STEP, as 0:0.95:0.05, got '0.5'"),
        (['--amounts', '0:0.5:0.1'], '`--amounts` and `--limit` need `--data-dir`'),
        (['--amount', '0.5', '--limit', '3'], '`--amounts` and `--limit` need `--data-dir`'),
        (['--amount', '0.5', '--data-dir', 'no/such'], "`data_dir` must be a folder of images, got 'no/such'"),
        (['--amount', '0.5', '--model', 'lc_resnet20_16x5'], 'LCResNets of other sizes are lc_resnet_cifar'),
        (
            ['--amount', '0.5', '--output', 'x.pth'],
            r"`--output` must be a folder or a \.safetensors file, got 'x\.pth'",
        ),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_written(argv, message, saved, tmp_path, capsys):
    error = refuse([saved, '--output', str(tmp_path / 'out'), *argv], capsys)
    assert re.search(message, ' '.join(error.split()))
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['', 'model.safetensors'])
def test_the_checkpoint_itself_is_not_replaced(name, saved, tmp_path, capsys):
    assert '`--output` is the checkpoint itself' in refuse(
        [saved, '--amount', '0.5', '--output', f'{saved}/{name}'], capsys
    )


def test_a_network_without_pointwise_convolutions(tmp_path, capsys):
    folder = save_pretrained(timm.create_model('test_vit'), tmp_path / 'vit')
    argv = [str(folder), '--amount', '0.5', '--output', str(tmp_path / 'out')]
    assert 'VisionTransformer has no pointwise convolution to prune' in refuse(argv, capsys)


@pytest.mark.parametrize('command', [['prune', '--amount', '0.5'], ['export', '--to', 'folded']])
def test_the_folder_of_a_run_takes_no_other_network(command, model, tmp_path, capsys):
    run = tmp_path / 'run'
    run.mkdir()
    torch.save({'state_dict': model.state_dict()}, run / 'last.pth.tar')
    kwargs = ['--model', 'lc_resnet20_16x4', '--model-kwargs', 'num_classes=3', 'share_weights=True', 'recycle=16']
    with pytest.raises(SystemExit) as exit_info:
        main([command[0], str(run), *command[1:], '--output', str(run), *kwargs])
    assert exit_info.value.code == 2
    assert re.search(r'`--output` is the folder of .*last\.pth\.tar', ' '.join(capsys.readouterr().err.split()))
    assert [path.name for path in run.iterdir()] == ['last.pth.tar']


def test_the_pruned_folder_tells_the_training_but_not_its_result(model, tmp_path):
    told = Facts({'dataset': 'digits', 'lr': 0.1}, {'eval_top1': 98.0}, 'a/b', 'cc0-1.0', 'timm-lc cifar')
    source = save_pretrained(model, tmp_path / 'source', facts=told)
    assert main(['prune', str(source), '--amount', '0.5', '--output', str(tmp_path / 'out')]) == 0
    assert read_facts(tmp_path / 'out') == Facts(told.arguments, {}, 'a/b', 'cc0-1.0', 'timm-lc cifar')
