"""`timm-lc run` and `train` run scripts as python does, and find timm's train.py in the stated places."""

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import timm
import yaml
from packaging.version import Version

from timm_lc.cli import main
from timm_lc.commands import _scripts as scripts

NEWEST = max(scripts.RELEASES, key=Version)
TAG = max((tag for tag in scripts.RELEASES if Version(tag) <= Version(timm.__version__)), key=Version)
REPORT = """
import json, multiprocessing, os, signal, sys

def double(value):
    return 2 * value

if __name__ == '__main__':
    import timm
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        doubled = pool.map(double, [1, 2])  # a child imports the script anew, under another name
    report = {'argv': sys.argv, 'path': sys.path[0], 'file': __file__, 'doubled': doubled}
    report['model'], report['rank'] = timm.is_model('lc_resnet50'), os.environ.get('RANK')
    report['main'] = vars(sys.modules['__main__']) is globals()
    print(json.dumps(report), flush=True)
    if sys.argv[1] == 'signal':
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
        os.kill(os.getpid(), int(sys.argv[2]))
    if sys.argv[1] == 'error':
        raise ValueError('of the script')
    sys.exit(int(sys.argv[2]))
"""
RUN = [sys.executable, '-m', 'timm_lc', 'run']


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'elsewhere' / 'report.py'
    path.parent.mkdir()
    path.write_text(REPORT)
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Leave no place to find train.py in: an empty folder, an empty cache, no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TIMM_SCRIPTS', raising=False)
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(scripts, 'SOURCE', 'http://127.0.0.1:9/v{version}/{script}')
    return tmp_path / 'cache/hub/timm_lc' / f'v{TAG}' / 'train.py'


@pytest.fixture
def server(nowhere, tmp_path, monkeypatch):
    """Serve scripts as timm's repository does, on the loopback interface; return their text."""
    text = 'import sys\nprint("trained", *sys.argv[1:])\n'
    (tmp_path / f'www/v{TAG}').mkdir(parents=True)
    for name in ('train.py', 'validate.py'):
        (tmp_path / f'www/v{TAG}' / name).write_text(text)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / 'www')

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http_server:
        threading.Thread(target=http_server.serve_forever).start()
        monkeypatch.setattr(scripts, 'SOURCE', f'http://127.0.0.1:{http_server.server_port}/v{{version}}/{{script}}')
        for name in ('train.py', 'validate.py'):
            monkeypatch.setitem(scripts.CHECKSUMS[name], TAG, hashlib.sha256(text.encode()).hexdigest())
        yield text
        http_server.shutdown()


def test_run_is_as_python_runs_it_but_with_the_models(script):
    arguments = ['exit', '7', '--help', '-b', '--', 'x']
    ours = subprocess.run([*RUN, script, *arguments], capture_output=True, text=True)
    python = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert json.loads(ours.stdout) == {**json.loads(python.stdout), 'model': True}
    assert ours.returncode == python.returncode == 7


@pytest.mark.parametrize(
    ('command', 'arguments'),
    [
        ('run echo.py', '-- x'),
        ('run echo.py', 'a --script b -h --'),
        ('run echo.py', 'run --model x --'),
        ('train --script echo.py', '--device-modules timm_lc -- data -b 3'),
        ('train --script echo.py', 'data run'),
    ],
)
def test_arguments_of_a_script_are_left_alone(command, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('echo.py').write_text('import sys\nprint(sys.argv)')
    monkeypatch.setattr(sys, 'argv', ['timm-lc', *command.split(), *arguments.split()])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main() == 0
    assert capsys.readouterr().out == f'{["echo.py", *arguments.split()]}\n'


def test_options_before_the_script_are_an_error(script, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['run', '--use-ema', str(script)])
    assert 'the following arguments are required: SCRIPT' in capsys.readouterr().err


def test_run_leaves_errors_to_the_script(script):
    done = subprocess.run([*RUN, script, 'error'], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith('ValueError: of the script\n')
    assert 'usage' not in done.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_run_dies_of_signals(script, number):
    assert subprocess.run([*RUN, script, 'signal', str(int(number))], capture_output=True).returncode == -number


def test_run_works_under_torchrun(script):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'timm_lc']
    done = subprocess.run([*command, 'run', script, 'exit', '0'], capture_output=True, text=True, check=True)
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(report['rank'] for report in reports) == ['0', '1']
    assert all(report['model'] for report in reports)


@pytest.mark.parametrize('arguments', [['run', 'absent.py'], ['train', '--script', 'absent.py']])
def test_absent_script_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    error = capsys.readouterr().err
    assert "SCRIPT must be a Python file or one of timm's (train.py, validate.py, " in error
    assert "got 'absent.py', which does not exist" in error


def test_run_finds_a_script_of_timms_by_its_bare_name(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['timm-lc'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main(['run', 'validate.py', '--model', 'lc_resnet18']) == 0
    assert capsys.readouterr().out == 'trained --model lc_resnet18\n'  # downloaded
    Path('validate.py').write_text('print("of the working directory")')
    assert main(['run', 'validate.py']) == 0
    assert capsys.readouterr().out == 'of the working directory\n'


def test_train_takes_a_recipe_by_its_name_and_a_file_by_its_path(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['timm-lc'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    assert main(['train', 'data', '-c', 'rsb_a2', '--model', 'lc_resnet50']) == 0
    printed = capsys.readouterr().out.split()
    assert printed[:2] == ['trained', '-c']
    assert yaml.safe_load(Path(printed[2]).read_text())['opt'] == 'lamb'
    assert printed[3:] == ['data', '--model', 'lc_resnet50']
    Path('rsb_a2.yaml').write_text('opt: sgd')
    assert main(['train', '--config=rsb_a2.yaml']) == 0
    assert capsys.readouterr().out == 'trained -c rsb_a2.yaml\n'


@pytest.mark.parametrize(
    ('name', 'hint'), [('train_configs/rsb_a2.yaml', '`-c rsb_a2`'), ('rsb_a9', 'cifar10, finetune, rsb_a1'), ('.', '')]
)
def test_absent_recipe_is_an_error_that_names_ours(nowhere, capsys, name, hint):
    with pytest.raises(SystemExit, match='2'):
        main(['train', '-c', name])
    error = capsys.readouterr().err
    assert f'no recipe or file {name!r}; the recipes of this package go by their names:' in error
    assert hint in error


@pytest.mark.parametrize(('text', 'message'), [('a: [', 'cannot read the recipe'), ('- 1', 'must hold train.py')])
def test_damaged_recipe_is_an_error_that_names_it(nowhere, capsys, text, message):
    Path('my.yaml').write_text(text)
    with pytest.raises(SystemExit, match='2'):
        main(['train', '-c', 'my.yaml'])
    error = capsys.readouterr().err
    assert message in error
    assert 'my.yaml' in error


def test_l1_may_stand_in_the_recipe_or_be_left_to_a_mask(server, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['timm-lc'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    Path('my.yaml').write_text('opt: l1sgd\nopt_kwargs: {l1: 5.e-5}')
    assert main(['train', '-c', 'my.yaml']) == 0
    assert main(['train', '--opt', 'l1sgd', '--opt-kwargs', 'keep_zeros=True']) == 0
    with pytest.raises(SystemExit, match='2'):  # they replace the recipe's, as in train.py
        main(['train', '-c', 'my.yaml', '--opt-kwargs', 'l1_mode=proximal'])


def test_train_looks_in_the_stated_order(server, nowhere, tmp_path, monkeypatch, capsys):
    assert scripts.find_script('train.py').read_text() == server  # downloaded
    assert nowhere.read_text() == server
    assert '100%' in capsys.readouterr().err
    monkeypatch.setattr(scripts, 'SOURCE', 'http://127.0.0.1:9/')
    assert scripts.find_script('train.py') == nowhere  # cached
    Path('train.py').touch()
    assert scripts.find_script('train.py') == Path('train.py')
    monkeypatch.setenv('TIMM_SCRIPTS', str(tmp_path / 'checkout'))
    assert scripts.find_script('train.py') == Path('train.py')  # not there
    (tmp_path / 'checkout').mkdir()
    (tmp_path / 'checkout/train.py').touch()
    assert scripts.find_script('train.py') == tmp_path / 'checkout/train.py'


def test_train_passes_its_arguments_to_the_script(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['timm-lc'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    arguments = 'data --model lc_resnet50 -b 3 --opt lookahead_l1sgd --lr -1 --opt-kwargs l1=1'
    assert main(['train', *arguments.split()]) == 0
    out, err = capsys.readouterr()
    assert out == f'trained {arguments}\n'
    assert 'timm-lc train: running' in err
    assert main(['train', '--script', f'www/v{TAG}/train.py', 'data']) == 0
    assert capsys.readouterr().out == 'trained data\n'


def test_damaged_cache_is_downloaded_again(server, nowhere):
    nowhere.parent.mkdir(parents=True)
    nowhere.write_text('import os')
    assert scripts.find_script('train.py').read_text() == server


def test_download_with_another_checksum_is_refused_and_leaves_nothing(server, nowhere, monkeypatch):
    monkeypatch.setitem(scripts.CHECKSUMS['train.py'], TAG, '0' * 64)
    with pytest.raises(FileNotFoundError, match=r'download: .*invalid hash value \(expected "000'):
        scripts.find_script('train.py')
    assert list(nowhere.parent.iterdir()) == []


def test_error_names_each_place_and_the_fix(nowhere, monkeypatch, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['train', '--model', 'lc_resnet50'])
    error = capsys.readouterr().err
    assert 'TIMM_SCRIPTS: not set' in error
    assert 'working directory: no file train.py' in error
    assert f'cache: no file {nowhere}' in error
    assert 'download: http://127.0.0.1:9/' in error
    assert error.splitlines()[-1] == f'  to fix it: curl -fO http://127.0.0.1:9/v{TAG}/train.py'
    monkeypatch.setenv('TIMM_SCRIPTS', 'checkout')
    nowhere.write_text('import os')
    with pytest.raises(FileNotFoundError, match='another checksum') as caught:
        scripts.find_script('train.py')
    assert f'TIMM_SCRIPTS: no file {Path("checkout", "train.py")}' in str(caught.value)


@pytest.mark.parametrize(
    ('installed', 'version'), [('1.0.24', '1.0.24'), ('1.0.27.dev0', '1.0.26'), ('1.0.99', NEWEST), ('2.1.0', NEWEST)]
)
def test_download_is_not_newer_than_the_installed_timm(nowhere, monkeypatch, installed, version):
    monkeypatch.setattr(timm, '__version__', installed)
    with pytest.raises(FileNotFoundError, match=f'http://127.0.0.1:9/v{version}/train.py'):
        scripts.find_script('train.py')


def test_timm_older_than_all_pinned_is_an_error(nowhere, monkeypatch):
    monkeypatch.setattr(timm, '__version__', '0.9.0')
    with pytest.raises(FileNotFoundError, match=r'no train.py is pinned for timm 0.9.0, older than 1.0.24'):
        scripts.find_script('train.py')


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (['--opt', 'l1_sgd'], "timm would use 'sgd' alone; did you mean l1sgd?"),
        (['--opt=lookahead_l1_sgd'], 'did you mean lookahead_l1sgd?'),
        (['--model', 'lc_resnet5'], 'did you mean lc_resnet50'),
        (['--opt', 'l1sgd'], '`--opt l1sgd` needs the factor of its penalty: `--opt-kwargs l1=5e-5`'),
    ],
)
def test_train_refuses_misspelt_names(arguments, text, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['train', *arguments])
    assert text in capsys.readouterr().err


@pytest.mark.skipif(
    'TIMM_SCRIPTS' not in os.environ or not Path(os.environ['TIMM_SCRIPTS'], '.git').exists(),
    reason='set TIMM_SCRIPTS to a git clone of timm with its tags',
)
def test_checksums_are_those_of_timms_tags():
    for version in scripts.RELEASES:
        for name in scripts.CHECKSUMS:
            show = ['git', '-C', os.environ['TIMM_SCRIPTS'], 'show', f'v{version}:{name}']
            assert hashlib.sha256(subprocess.check_output(show)).hexdigest() == scripts._pinned(name, version)
