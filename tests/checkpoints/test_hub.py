"""Push and pull over a real wire: huggingface_hub's own client against the server of `hub_server`."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import yaml
from hub_server import READER, TOKEN, Commit, Hub
from huggingface_hub import ModelCard, constants, file_download, snapshot_download
from huggingface_hub.utils import _http, close_session
from timm.utils import CheckpointSaver, update_summary

import timm_lc
from timm_lc.checkpoints.checkpoint import load_model
from timm_lc.checkpoints.facts import Facts
from timm_lc.checkpoints.hub import push_to_hub, write_repositories
from timm_lc.checkpoints.train_run import read_facts
from timm_lc.cli import main

# huggingface_hub's own: how it hands a file to its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

NAME = 'user/name'
FILES = {'README.md', 'config.json', 'model.safetensors'}
WEIGHTS = '(GET|PUT) /(cdn|lfs)/'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a Hub that huggingface_hub talks to in this process, with an empty cache and a token that may write."""
    for name in ('HF_HUB_CACHE', 'HF_TOKEN_PATH', 'HF_STORED_TOKENS_PATH', 'AGENT_HARNESSES_PATH'):
        monkeypatch.setattr(constants, name, str(tmp_path / 'hf' / name), raising=False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)  # files go by LFS, over HTTP
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setenv('NO_PROXY', '*')
    for module in (_http, file_download):  # no waiting between attempts
        monkeypatch.setattr(module, 'time', SimpleNamespace(sleep=lambda seconds: None))
    close_session()
    with Hub() as hub:
        monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
        template = hub.url + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        yield hub
        close_session()
    assert not hub.unknown


def build(seed=7, name='lc_resnet20_16x2', **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model(name, seed=seed, **kwargs)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model.eval()


def pull(name=NAME, **kwargs):
    return timm.create_model(f'hf-hub:{name}', pretrained=True, **kwargs).eval()


def files_of(hub, name=NAME, ref='main'):
    return {path: blob for path, (blob, _) in hub.repositories[name].history(ref)[0].files.items()}


def commits_of(hub, name=NAME, ref='main'):
    return [commit.title for commit in hub.repositories[name].history(ref)]


def python(card):
    """Return the Python in a model card."""
    return re.findall('```python\n(.*?)```', card, re.DOTALL)


def run_code(code):
    """Return the `model` that the code of a card makes."""
    names = {}
    exec(code, names)
    return names['model']


@pytest.fixture
def run(tmp_path):
    """Return the folder of a train.py run of three epochs, of which the second is the best, as train.py writes it."""
    folder = tmp_path / 'run'
    folder.mkdir()
    args = argparse.Namespace(model='lc_resnet20_16x2', num_classes=4, model_kwargs={'seed': 7}, val_split='validation')
    args.__dict__ |= {
        'epochs': 3,
        'lr': 0.1,
        'opt': 'sgd',
        'smoothing': 0.0,
        'data_dir': '/secret/place',
        'world_size': 2,
    }
    (folder / 'args.yaml').write_text(yaml.safe_dump({**vars(args), 'lr': None}))
    model = build(num_classes=4).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), args.lr)
    saver = CheckpointSaver(model, optimizer, args, checkpoint_dir=folder)
    for epoch, top1 in enumerate([25.0, 50.0, 37.5]):
        with torch.no_grad():
            model.fc.bias.fill_(epoch)
        metrics = {'loss': 1.5, 'top1': top1, 'top5': 100.0}
        update_summary(epoch, {'loss': 1.0}, metrics, folder / 'summary.csv', lr=0.1, write_header=epoch == 0)
        saver.save_checkpoint(epoch, top1)
    return folder


# Push and pull


def test_push_is_one_commit_of_weights_config_and_card(hub):
    model = build()
    addresses = push_to_hub(model, NAME, commit_message='Add it')
    assert commits_of(hub) == ['Add it', 'initial commit']
    assert addresses == [f'{hub.url}/{NAME}/commit/{hub.repositories[NAME].refs["main"]}']
    commit = hub.repositories[NAME].history()[0]
    assert set(commit.files) == FILES | {'.gitattributes'}
    assert commit.files['model.safetensors'][1]
    assert safetensors.torch.load(files_of(hub)['model.safetensors']).keys() == model.state_dict().keys()
    assert not hub.repositories[NAME].private


def test_push_without_a_card(hub):
    push_to_hub(build(), NAME, card='')
    assert set(hub.repositories[NAME].history()[0].files) == FILES - {'README.md'} | {'.gitattributes'}


def test_pulled_network_gives_the_same_logits_to_the_bit(hub, images):
    model = build()
    push_to_hub(model, NAME)
    pulled = pull()
    assert pulled.pretrained_cfg['architecture'] == 'lc_resnet20_16x2'
    assert torch.equal(pulled(images), model(images))


def test_channels_last_weights_are_pushed(hub, images):
    model = build().to(memory_format=torch.channels_last)
    push_to_hub(model, NAME)
    assert torch.equal(pull()(images), build()(images))


def test_wrapped_networks_are_pushed(hub, images):
    push_to_hub(torch.nn.DataParallel(build()), NAME)
    assert torch.equal(pull()(images), build()(images))


def test_pulled_network_takes_other_classes_and_input_channels(hub, images):
    model = build()
    push_to_hub(model, NAME)
    fewer = pull(num_classes=5)
    assert fewer.fc.out_features == 5
    assert torch.equal(fewer.forward_features(images), model.forward_features(images))
    gray = images[:, :1]
    # timm's adapt_input_conv sums the filters over the input channels
    expected = model(gray.expand(-1, 3, -1, -1))
    torch.testing.assert_close(pull(in_chans=1)(gray), expected)


def test_fresh_processes_pull_by_name_and_the_plain_form_needs_no_package(hub, images, tmp_path):
    model = build(name='lc_test_resnet', num_classes=4)
    push_to_hub(model, NAME, plain_repo='user/plain')
    code = f"""
import sys, timm, torch
sys.modules['timm_lc'] = None  # as where the package is not installed
images = torch.load({str(tmp_path / 'images.pt')!r})
logits = [timm.create_model('hf-hub:user/plain', pretrained=True).eval()(images)]
del sys.modules['timm_lc']
import timm_lc
logits.append(timm.create_model('hf-hub:{NAME}', pretrained=True).eval()(images))
torch.save(logits, {str(tmp_path / 'logits.pt')!r})
"""
    torch.save(images, tmp_path / 'images.pt')
    places = {'HF_ENDPOINT': hub.url, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_CACHE': str(tmp_path / 'home/hub')}
    environment = {**os.environ, **places, 'HF_HUB_OFFLINE': '0', 'OMP_NUM_THREADS': '1'}
    del environment['HF_TOKEN']
    subprocess.run([sys.executable, '-c', code], check=True, env=environment)
    plain, own = torch.load(tmp_path / 'logits.pt')
    assert torch.equal(own, model(images))
    torch.testing.assert_close(plain, own, rtol=1e-4, atol=1e-5)


def test_the_card_s_code_runs(hub, images, stock_folders):
    model = build(name='lc_test_resnet', num_classes=4)
    push_to_hub(model, NAME, plain=True)
    own, _, plain = python(files_of(hub)['README.md'].decode())
    assert torch.equal(run_code(own)(images), model(images))
    torch.testing.assert_close(run_code(plain)(images), model(images), rtol=1e-4, atol=1e-5)


def test_weights_are_downloaded_once(hub):
    push_to_hub(build(), NAME)
    pull()
    assert len(hub.asked('GET /cdn/')) == 1
    pull()
    assert len(hub.asked('GET /cdn/')) == 1


def test_a_revision_is_a_branch(hub, images):
    push_to_hub(build(), NAME)
    push_to_hub(build(8), NAME, revision='v2')
    assert commits_of(hub) == ['Add model', 'initial commit']
    assert torch.equal(pull()(images), build()(images))
    assert torch.equal(pull(f'{NAME}@v2')(images), build(8)(images))
    push_to_hub(build(9), NAME, revision='v2')  # a branch that is there
    assert torch.equal(pull(f'{NAME}@v2')(images), build(9)(images))


def test_a_pull_request_leaves_the_main_branch(hub, images):
    push_to_hub(build(), NAME)
    addresses = push_to_hub(build(8), NAME, create_pr=True, commit_message='Better')
    assert addresses == [f'{hub.url}/{NAME}/discussions/1']
    assert commits_of(hub) == ['Add model', 'initial commit']
    assert commits_of(hub, ref='refs/pr/1') == ['Better', 'Add model', 'initial commit']
    assert torch.equal(pull()(images), build()(images))
    assert torch.equal(pull(f'{NAME}@refs/pr/1')(images), build(8)(images))


def test_a_pull_request_needs_no_right_to_write(hub, images):
    push_to_hub(build(), NAME)
    with pytest.raises(ConnectionError, match='403 Forbidden'):
        push_to_hub(build(8), NAME, token=READER)
    push_to_hub(build(8), NAME, token=READER, create_pr=True)
    assert torch.equal(pull(f'{NAME}@refs/pr/1')(images), build(8)(images))


def test_pushing_the_same_again_makes_no_commit(hub):
    first = push_to_hub(build(), NAME)
    uploads = hub.asked(WEIGHTS)
    assert push_to_hub(build(), NAME) == first
    assert push_to_hub(build(), NAME, create_pr=True) == first
    assert commits_of(hub) == ['Add model', 'initial commit']
    assert hub.asked(WEIGHTS) == uploads


def test_only_what_changed_is_uploaded(hub):
    push_to_hub(build(), NAME)
    push_to_hub(build(), NAME, facts=Facts(license='mit'))
    assert len(commits_of(hub)) == 3
    assert len(hub.asked('PUT')) == 1


def test_private_and_token(hub, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    push_to_hub(build(), NAME, private=True, token=TOKEN)
    assert hub.repositories[NAME].private
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        pull()


def test_what_shall_be_private_does_not_go_into_a_public_repository(hub):
    push_to_hub(build(), NAME)
    with pytest.raises(
        ConnectionError, match=f'cannot push to {NAME}: it is there already and public: make it private'
    ):
        push_to_hub(build(8), NAME, private=True)
    assert commits_of(hub) == ['Add model', 'initial commit']
    push_to_hub(build(), 'user/other', private=True)
    push_to_hub(build(8), 'user/other', private=True)
    assert len(commits_of(hub, 'user/other')) == 3


def test_a_card_that_somebody_else_wrote_stays(hub):
    push_to_hub(build(), NAME)
    push_to_hub(build(), NAME, facts=Facts(license='mit'))
    assert 'license: mit' in files_of(hub)['README.md'].decode()  # ours is replaced
    push_to_hub(build(), NAME, card='---\nlicense: mit\n---\nMy own words.')
    push_to_hub(build(8), NAME)
    assert files_of(hub)['README.md'].decode().endswith('My own words.')
    assert len(hub.asked('PUT')) == 2


def test_sparse_and_dtype_reach_the_file(hub, images):
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1):
                module.weight[module.weight.abs() < module.weight.abs().median()] = 0
    push_to_hub(model, NAME)
    dense = len(files_of(hub)['model.safetensors'])
    push_to_hub(model, NAME, sparse=True)
    assert len(files_of(hub)['model.safetensors']) < 0.7 * dense
    assert torch.equal(pull()(images), model(images))
    push_to_hub(model, NAME, dtype=torch.float16)
    assert len(files_of(hub)['model.safetensors']) < 0.7 * dense


# The stock form


def test_plain_puts_the_stock_form_into_a_folder(hub, images, stock_folders):
    model = build(name='lc_test_resnet', num_classes=4)
    push_to_hub(model, NAME, plain=True)
    push_to_hub(model, NAME, plain=True)
    assert len(commits_of(hub)) == 2
    assert set(files_of(hub)) == FILES | {'.gitattributes', 'plain/config.json', 'plain/model.safetensors'}
    folder = snapshot_download(NAME, allow_patterns='plain/*')
    stock = timm.create_model(f'local-dir:{folder}/plain', pretrained=True).eval()
    assert stock.pretrained_cfg['architecture'] == 'test_resnet'
    torch.testing.assert_close(stock(images), model(images), rtol=1e-4, atol=1e-5)


def test_adapter_is_fetched_with_its_base(hub, stock, images):
    push_to_hub(stock(), 'user/base')
    model = timm.create_model('lc_test_resnet', adapter=4, base='hf-hub:user/base', num_classes=3).eval()
    assert torch.equal(model.forward_features(images), stock().forward_features(images))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    push_to_hub(model, NAME)
    assert len(files_of(hub)['model.safetensors']) < len(files_of(hub, 'user/base')['model.safetensors']) / 10
    assert 'base_model: user/base' in files_of(hub)['README.md'].decode()
    assert torch.equal(pull()(images), model(images))


def test_plain_repo_has_a_card_of_its_own(hub):
    push_to_hub(build(name='lc_test_resnet', num_classes=4), NAME, plain_repo='user/plain')
    assert set(files_of(hub)) == set(files_of(hub, 'user/plain')) == FILES | {'.gitattributes'}
    card = files_of(hub, 'user/plain')['README.md'].decode()
    assert 'import timm_lc' not in card
    assert f'The same function as [{NAME}]' in card
    assert "timm.create_model('hf-hub:user/plain', pretrained=True)" in files_of(hub)['README.md'].decode()


def test_networks_that_stock_timm_lacks_become_a_program(hub, images, monkeypatch):
    # ONNX takes long, and `export` is tested
    monkeypatch.setattr('timm_lc.checkpoints.exporting.find_spec', lambda name: None)
    model = build(name='lc_resnet_cifar', depth=8, expansion=2)
    push_to_hub(model, NAME, plain=True)
    push_to_hub(model, NAME, plain=True)
    assert len(commits_of(hub)) == 2
    assert set(files_of(hub)) == FILES | {'.gitattributes', 'plain/model.pt2'}
    *_, code = python(files_of(hub)['README.md'].decode())
    assert 'timm' not in code
    torch.testing.assert_close(run_code(code)(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_program_s_card_is_not_timm_s(hub, images, monkeypatch):
    monkeypatch.setattr('timm_lc.checkpoints.exporting.find_spec', lambda name: None)
    model = build(name='lc_resnet_cifar', depth=8, expansion=2)
    push_to_hub(model, NAME, plain_repo='user/plain')
    assert set(files_of(hub, 'user/plain')) == {'.gitattributes', 'README.md', 'model.pt2'}
    card = ModelCard(files_of(hub, 'user/plain')['README.md'].decode())
    assert card.data.library_name is None
    assert card.data.tags == ['image-classification', 'timm_lc']
    (code,) = python(card.text)
    assert code in python(files_of(hub)['README.md'].decode())
    torch.testing.assert_close(run_code(code)(images), model(images), rtol=1e-4, atol=1e-5)


def test_no_plain_form_of_another_network_stays(hub):
    model = build(name='lc_test_resnet', num_classes=4)
    push_to_hub(model, NAME, plain=True)
    last = hub.repositories[NAME].history()[0]
    hub.repositories[NAME].add(
        'main', Commit({**last.files, 'plain/notes.txt': (b'mine', False)}, 'Add notes', last.oid)
    )
    push_to_hub(model, NAME)
    assert {path for path in files_of(hub) if path.startswith('plain/')} == {'plain/notes.txt'}
    assert len(commits_of(hub)) == 4


def test_what_timm_did_not_create_is_refused(hub):
    with pytest.raises(ValueError, match='a Linear has no architecture'):
        push_to_hub(torch.nn.Linear(1, 1), NAME)
    with pytest.raises(ValueError, match='a Linear has no architecture'):
        push_to_hub(torch.nn.Linear(1, 1), NAME, plain=True)
    assert not hub.requests


# Errors


def leave_no_trace(tmp_path, monkeypatch):
    """Return a function that tells which files have appeared, temporary ones included."""
    (tmp_path / 'here').mkdir()
    (tmp_path / 'temporary').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'temporary'))
    return lambda: [*(tmp_path / 'here').rglob('*'), *(tmp_path / 'temporary').rglob('*')]


@pytest.mark.parametrize(
    ('request_', 'action', 'words'),
    [
        ('POST /api/repos/create', 401, r'401 Unauthorized .*: log in with `hf auth login`'),
        ('POST /api/repos/create', 403, r'403 Forbidden .*: give a token that may write'),
        ('POST /api/repos/create', 'drop', r'Server disconnected .*: check the connection'),
        ('POST /api/validate-yaml', 500, r'500 Internal Server Error .*: push again later'),
        ('POST .*/preupload/', 404, r'404 Not Found .*: check the name'),
        ('POST .*/objects/batch', 503, r'503 Service Unavailable .*: push again later'),
        ('PUT /lfs/', 'drop', r'check the connection and push again later'),
        ('PUT /lfs/', 'die', r'Connection refused.*: check the connection and push again later'),
        ('PUT /lfs/', 'short', r'422 .*another size or hash.*: push again later'),
        ('POST .*/commit/', 401, r'log in with `hf auth login`'),
        ('POST .*/commit/', 409, r'409 Conflict .*: something else changed the repository at the same time'),
        ('POST .*/commit/', 500, r'500 Internal Server Error .*: push again later'),
        ('POST .*/commit/', 'die', r'check the connection'),
    ],
)
def test_a_fault_is_one_line_and_pushing_again_finishes(request_, action, words, hub, images, tmp_path, monkeypatch):
    appeared = leave_no_trace(tmp_path, monkeypatch)
    hub.fail(request_, action, times=99)
    with pytest.raises(ConnectionError, match=f'^cannot push to {NAME}: .*{words}') as info:
        push_to_hub(build(), NAME)
    assert '\n' not in str(info.value)
    assert not appeared()
    assert NAME not in hub.repositories or commits_of(hub) == ['initial commit']
    arrived = bool(hub.objects)
    if action == 'die':
        hub.start()
    hub.faults.clear()
    sent = len(hub.asked('PUT'))
    push_to_hub(build(), NAME)
    assert commits_of(hub) == ['Add model', 'initial commit']
    assert len(hub.asked('PUT')) == sent + (not arrived)  # what has arrived is not sent again
    assert torch.equal(pull()(images), build()(images))


def test_a_hub_that_fails_for_a_moment_is_asked_again(hub):
    hub.fail('PUT /lfs/', 500, times=2)
    hub.fail('POST .*/preupload/', 'drop')
    push_to_hub(build(), NAME)
    assert len(commits_of(hub)) == 2


@pytest.mark.parametrize(
    ('token', 'name', 'words'),
    [(None, NAME, 'hf auth login'), (READER, NAME, 'create_pr'), (TOKEN, 'somebody/name', 'may write')],
)
def test_who_may_not_write_is_told_what_to_do(token, name, words, hub, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(ConnectionError, match=words):
        push_to_hub(build(), name, token=token)


def test_an_unknown_licence_is_what_the_hub_says(hub):
    with pytest.raises(ConnectionError, match=r'400 .*"license" must be one of a list.*: correct it and push again'):
        push_to_hub(build(), NAME, facts=Facts(license='nonsense'))


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'repo_id': 'name'}, 'must be `user/name`'),
        ({'repo_id': '../name'}, 'must be `user/name`'),
        ({'repo_id': NAME, 'plain_repo': 'a/b/c'}, 'must be `user/name`'),
        ({'repo_id': NAME, 'plain_repo': 'user/plain', 'plain': True}, 'not both'),
        ({'repo_id': NAME, 'create_pr': True, 'revision': 'v2'}, '`create_pr` is for the main branch'),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(kwargs, words, hub):
    with pytest.raises(ValueError, match=words):
        push_to_hub(build(name='lc_test_resnet'), **kwargs)
    assert not hub.requests


@pytest.mark.parametrize('action', ['truncate', 'short', 401, 500])
def test_a_download_that_fails_leaves_nothing_and_the_next_finishes(action, hub, images, tmp_path):
    push_to_hub(build(), NAME)
    hub.fail('GET /cdn/', action, times=99)
    with pytest.raises((OSError, huggingface_hub.errors.HTTPError)):
        pull()
    size = len(files_of(hub)['model.safetensors'])
    blobs = [path for path in (tmp_path / 'hf').rglob('blobs/*') if path.stat().st_size != size]
    assert len(blobs) == 1  # config.json: no partial weights
    hub.faults.clear()
    assert torch.equal(pull()(images), build()(images))


def test_a_download_that_breaks_off_is_resumed(hub, images):
    push_to_hub(build(), NAME)
    hub.fail('GET /cdn/', 'truncate')
    assert torch.equal(pull()(images), build()(images))


# Runs of train.py


def test_facts_of_a_run_are_its_best_epoch_s(run):
    facts = read_facts(run)
    assert facts.metrics == {
        'epoch': 1,
        'train_loss': 1.0,
        'eval_loss': 1.5,
        'eval_top1': 50,
        'eval_top5': 100,
        'lr': 0.1,
    }
    assert facts.arguments['lr'] == 0.1  # as trained: args.yaml says None
    assert read_facts(run / 'last.pth.tar').metrics['eval_top1'] == 37.5
    assert read_facts(run / 'checkpoint-0.pth.tar').metrics['eval_top1'] == 25


def test_facts_are_those_of_the_last_time_an_epoch_was_run(run):
    with (run / 'summary.csv').open('a') as file:
        file.write('epoch,train_loss,eval_top1\n0,1.0,99.0\n1,,inf\n')
    assert read_facts(run).metrics == {'epoch': 1}
    assert read_facts(run / 'checkpoint-0.pth.tar').metrics == {'epoch': 0, 'train_loss': 1, 'eval_top1': 99}


def test_metrics_of_other_weights_are_left_out(run, tmp_path):
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    checkpoint['args'].__dict__ |= {'model_ema': True, 'model_ema_force_cpu': True}
    torch.save(checkpoint, run / 'last.pth.tar')
    assert read_facts(run / 'last.pth.tar').metrics == {}
    model = build(num_classes=4)
    safetensors.torch.save_file(model.state_dict(), run / 'averaged.safetensors')
    assert read_facts(run / 'averaged.safetensors').metrics == {}


def test_arguments_beside_a_file_tell_its_architecture(run, images):
    model = build(num_classes=4)
    safetensors.torch.save_file(model.state_dict(), run / 'averaged.safetensors')
    assert torch.equal(load_model(run / 'averaged.safetensors')(images), model(images))


@pytest.mark.parametrize(
    ('name', 'text', 'words'),
    [
        ('summary.csv', 'epoch,eval_top1\n1,high\n', "cannot read .*summary.csv as train.py's summary"),
        ('summary.csv', 'epoch,eval_top1\nx,1.0\n', "cannot read .*summary.csv as train.py's summary"),
        ('args.yaml', 'model: [', r'cannot read .*args.yaml: '),
        ('args.yaml', 'model', r'args.yaml holds no arguments of train.py'),
    ],
)
def test_damaged_files_of_a_run_are_named(name, text, words, run):
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_facts(run)


# The command


def test_dry_run_writes_a_folder_for_stock_tools_and_asks_nothing(hub, run, images, tmp_path, capsys):
    argv = ['push', str(run), NAME, '--dry-run', '--output', str(tmp_path / 'dry')]
    assert main(argv) == 0
    assert 'the card names no data set: `--dataset USER/NAME`' in capsys.readouterr().err
    assert main([*argv, '--dataset', 'user/images']) == 0
    folder = tmp_path / 'dry' / NAME
    out, err = capsys.readouterr()
    printed = out.splitlines()
    assert 'data set' not in err
    listed = {line.split()[-1]: line.split()[0] for line in printed[:-1]}
    assert listed == {str(folder / name): f'{(folder / name).stat().st_size:,}' for name in FILES}
    assert printed[-1] == 'dry run: nothing was uploaded'
    assert not hub.requests
    best = torch.load(run / 'model_best.pth.tar', weights_only=False)['state_dict']
    model = build(num_classes=4)
    model.load_state_dict(best)
    opened = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(opened(images), model(images))
    card = ModelCard.load(folder / 'README.md')
    assert card.data.datasets == ['user/images']
    assert [(result.metric_name, result.metric_value) for result in card.data.eval_results] == [('Top-1 accuracy', 0.5)]
    assert 'secret' not in card.content  # the run's data_dir


def test_push_prints_the_address(hub, run, images, capsys):
    assert main(['push', str(run), NAME, '--private', '--token', TOKEN, '--message', 'Add a run']) == 0
    assert capsys.readouterr().out.split() == [f'{hub.url}/{NAME}/commit/{hub.repositories[NAME].refs["main"]}']
    assert commits_of(hub)[0] == 'Add a run'
    assert hub.repositories[NAME].private
    assert torch.equal(pull()(images), load_model(run)(images))
    assert main(['push', str(run / 'last.pth.tar'), NAME, '--create-pr']) == 0
    assert capsys.readouterr().out.split() == [f'{hub.url}/{NAME}/discussions/1']
    assert main(['push', str(run / 'last.pth.tar'), NAME, '--revision', 'last']) == 0
    assert torch.equal(pull(f'{NAME}@last')(images), load_model(run / 'last.pth.tar')(images))


def test_push_takes_a_file_with_a_name(hub, images, tmp_path):
    model = build(name='lc_test_resnet', num_classes=4)
    safetensors.torch.save_file(model.state_dict(), tmp_path / 'bare.safetensors')
    argv = ['push', str(tmp_path / 'bare.safetensors'), NAME, '--model', 'lc_test_resnet', '--model-kwargs']
    assert main([*argv, 'num_classes=4', '--plain-repo', 'user/plain', '--license', 'mit', '--dtype', 'float16']) == 0
    assert 'license: mit' in files_of(hub, 'user/plain')['README.md'].decode()
    assert len(files_of(hub)['model.safetensors']) < 0.6 * (tmp_path / 'bare.safetensors').stat().st_size
    torch.testing.assert_close(pull()(images), model(images), rtol=0.02, atol=0.02)


def test_push_takes_the_card_of_a_saved_folder_if_somebody_wrote_it(hub, tmp_path):
    folder = timm_lc.save_pretrained(build(), tmp_path / 'saved')
    assert main(['push', str(folder), NAME]) == 0
    assert f"'hf-hub:{NAME}'" in files_of(hub)['README.md'].decode()  # of its own it would name the folder
    (folder / 'README.md').write_text('---\nlicense: mit\n---\nMy own words.')
    timm_lc.save_pretrained(build(8), folder)
    assert main(['push', str(folder), NAME, '--sparse']) == 0
    assert files_of(hub)['README.md'].decode().endswith('My own words.')


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['{run}', NAME], 'cannot push to user/name: the Hub answered 401 Unauthorized .*`hf auth login`'),
        (['{run}', 'name'], r"a repository must be `user/name`, got 'name'"),
        (['{run}/none.pth.tar', NAME], 'no checkpoint at .*none.pth.tar'),
        (['{run}', NAME, '--output', 'folder'], '`--output` is of `--dry-run`: a push writes no folder, got folder'),
        (['{run}', NAME, '--model', 'lc_resnet51'], "unknown model 'lc_resnet51'"),
    ],
)
def test_errors_leave_with_status_2_and_one_line(argv, words, hub, run, capsys, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(SystemExit) as info:
        main(['push', *(word.format(run=run) for word in argv)])
    assert info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


def test_folders_are_written_per_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = write_repositories(build(name='lc_test_resnet'), 'dry', NAME, plain_repo='user/plain')
    assert written == {name: [Path('dry', name, file) for file in sorted(FILES)] for name in (NAME, 'user/plain')}
    assert all(path.is_file() for files in written.values() for path in files)


@pytest.mark.parametrize('revision', [None, 'branch'])
def test_a_change_between_reading_and_pushing_is_an_error_and_not_lost(revision, hub, monkeypatch):
    push_to_hub(build(7), NAME, revision=revision)
    repository, ref = hub.repositories[NAME], revision or 'main'
    create_commit = huggingface_hub.HfApi.create_commit

    def late(api, *args, **kwargs):
        present = repository.resolve(ref)
        files = present.files | {'README.md': (b'the words of somebody else', False)}
        repository.add(ref, Commit(files, 'meanwhile', present.oid))
        return create_commit(api, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_commit', late)
    with pytest.raises(ConnectionError, match=f'cannot push to {NAME}: .*412 .*something else changed the repository'):
        push_to_hub(build(8), NAME, revision=revision)
    assert repository.resolve(ref).files['README.md'][0] == b'the words of somebody else'
    assert repository.resolve(ref).title == 'meanwhile'


def test_names_that_climb_out_of_a_repository_reach_no_file_here(hub, tmp_path, monkeypatch):
    push_to_hub(build(7), NAME)
    repository = hub.repositories[NAME]
    present = repository.resolve('main')
    climbing = dict.fromkeys(('../evil', 'plain/../../../evil', '/evil'), (b'evil', False))
    repository.add('main', Commit(present.files | climbing, 'climb', present.oid))
    temporary = tmp_path / 'a/b/c/d'  # deep enough that what climbs out of it is found
    temporary.mkdir(parents=True)
    monkeypatch.setattr('tempfile.tempdir', str(temporary))
    push_to_hub(build(8), NAME)
    assert not [path for path in tmp_path.rglob('*') if path.name == 'evil']
    assert not Path('/evil').exists()
    assert climbing.keys() <= repository.resolve('main').files.keys()
