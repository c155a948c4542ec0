"""Commands keep the form in which a checkpoint is stored, unless they are told another."""

import pytest
import timm
import torch
from safetensors.torch import load_file

import timm_lc
from timm_lc.checkpoints.train_run import read_form
from timm_lc.cli import main

FORMS = [
    (['push', '{source}', 'user/name', '--dry-run', '--output', '{out}'], 'user/name/model.safetensors'),
    (['export', '{source}', '--to', 'safetensors', '--output', '{out}'], 'model.safetensors'),
]


@pytest.fixture
def source(tmp_path):
    model = timm_lc.prune_pointwise(timm.create_model('lc_resnet20_16x1').eval(), 0.8)
    return timm_lc.save_pretrained(model, tmp_path / 'source', sparse=True, dtype=torch.float16)


def run(argv, source, out, *options):
    assert main([word.format(source=source, out=out) for word in argv] + list(options)) == 0


@pytest.mark.parametrize(('argv', 'file'), FORMS)
def test_the_form_of_the_source_is_kept_and_said(argv, file, source, tmp_path, capsys):
    run(argv, source, tmp_path / 'out')
    before, after = load_file(source / 'model.safetensors'), load_file(tmp_path / 'out' / file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert f'stored as in {source}: sparse, float16' in capsys.readouterr().err


@pytest.mark.parametrize(('argv', 'file'), FORMS)
def test_another_form_may_be_asked_for(argv, file, source, tmp_path, capsys):
    run(argv, source, tmp_path / 'out', '--no-sparse', '--dtype', 'float32')
    tensors = load_file(tmp_path / 'out' / file)
    assert not any(name.endswith('mask') for name in tensors)
    assert {tensor.dtype for name, tensor in tensors.items() if tensor.ndim > 1} == {torch.float32}
    assert 'stored as' not in capsys.readouterr().err


def test_whole_weights_and_files_of_other_kinds_have_no_form(tmp_path):
    model = timm.create_model('lc_resnet20_16x1')
    assert read_form(timm_lc.save_pretrained(model, tmp_path)) == (False, None)
    torch.save(model.half().state_dict(), tmp_path / 'half.pth')
    assert read_form(tmp_path / 'half.pth') == (False, None)


@pytest.mark.parametrize('options', [['user/name'], ['user/other', '--plain-repo', 'user/name']])
def test_a_dry_run_does_not_replace_its_source(options, tmp_path, capsys):
    source = timm_lc.save_pretrained(timm.create_model('lc_resnet20_16x1'), tmp_path / 'user/name')
    before = (source / 'model.safetensors').read_bytes()
    with pytest.raises(SystemExit):
        main(['push', str(source), *options, '--dry-run', '--output', str(tmp_path), '--dtype', 'float16'])
    assert '`--output` is the checkpoint itself' in capsys.readouterr().err
    assert (source / 'model.safetensors').read_bytes() == before
