"""What the wheel and the sdist carry, and that the wheel works where the repository is not."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import timm_lc

ROOT = Path(__file__).parents[1]
RECIPES = {path.name for path in (ROOT / 'train_configs').glob('*.yaml')}
# what is imported by another name than it is installed by
DISTRIBUTIONS = {'PIL': 'pillow', 'yaml': 'pyyaml', 'timm_lc': 'timm_lc'}


@pytest.fixture(scope='module')
def setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    return setup


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Return a folder with the wheel and the sdist, built of a copy of the repository."""
    pytest.importorskip('setuptools', minversion='77', reason='building needs setuptools 77')
    copy, output = tmp_path_factory.mktemp('repository') / 'timm_lc', tmp_path_factory.mktemp('dist')
    left_out = shutil.ignore_patterns('.*', 'output', 'build', 'dist', '*.egg-info', '__pycache__', 'results')
    shutil.copytree(ROOT, copy, ignore=left_out)
    code = (
        'import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)'
    )
    subprocess.run([sys.executable, '-c', code, output], cwd=copy, check=True, capture_output=True)
    return output


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    """Return a folder that has what the wheel installs."""
    folder = tmp_path_factory.mktemp('site-packages')
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        wheel.extractall(folder)
    return folder


def run_installed(installed, folder, *command):
    environment = {**os.environ, 'PYTHONPATH': str(installed)}
    environment.pop('TIMM_SCRIPTS', None)
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_each_file_of_the_package_and_the_recipes(installed):
    files = (path for path in (ROOT / 'timm_lc').rglob('*') if path.is_file() and path.suffix != '.pyc')
    ours = {str(path.relative_to(ROOT)) for path in files} | {'timm_lc_command.py'}
    ours |= {f'timm_lc/train_configs/{name}' for name in RECIPES}
    found = {str(path.relative_to(installed)) for path in installed.rglob('*') if path.is_file()}
    assert {name for name in found if '.dist-info/' not in name} == ours
    assert {path.name for path in (installed / 'timm_lc/train_configs').iterdir()} == RECIPES
    assert (installed / 'timm_lc/py.typed').is_file()


def test_the_sdist_has_what_tests_and_documents_need(built):
    with tarfile.open(next(built.glob('*.tar.gz'))) as sdist:
        names = {name.partition('/')[2] for name in sdist.getnames()}
    assert {f'train_configs/{name}' for name in RECIPES} <= names
    needed = ['constraints.txt', 'CITATION.cff', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'timm_lc/py.typed']
    needed += ['tests/test_packaging.py', 'tests/train_arguments.txt', 'benchmarks/stock_scripts.py']
    assert set(needed) <= names


def test_recipes_are_found_where_the_wheel_is_installed(installed, tmp_path):
    printed = run_installed(installed, tmp_path, '-m', 'timm_lc', 'recipes', 'rsb_a2')
    assert printed == (ROOT / 'train_configs/rsb_a2.yaml').read_text()
    Path(tmp_path, 'train.py').write_text('import sys\nprint(sys.argv[2])')
    path = Path(run_installed(installed, tmp_path, '-m', 'timm_lc', 'train', '-c', 'rsb_a2').strip())
    assert path == installed / 'timm_lc/train_configs/rsb_a2.yaml'


def test_the_command_of_the_wheel_runs(installed, tmp_path, setup):
    module, _, function = setup['options.entry_points']['console_scripts'].split(' = ')[1].partition(':')
    code = f'import sys; sys.argv[1:] = ["list", "lc_resnet50d"]; from {module} import {function} as f; sys.exit(f())'
    assert run_installed(installed, tmp_path, '-c', code) == 'lc_resnet50d\n'


def test_what_files_import_at_their_top_is_declared(setup):
    declared = {re.split('[^a-z_]', line)[0] for line in setup['options']['install_requires'].split('\n')}
    for path in (ROOT / 'timm_lc').rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            tops = {name.partition('.')[0] for name in names} - sys.stdlib_module_names
            assert {DISTRIBUTIONS.get(name, name) for name in tops} <= declared | {'timm_lc'}, path


def test_the_version_stands_in_the_citation_and_the_changelog():
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == timm_lc.__version__
    assert f'## {timm_lc.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
