"""Every command and snippet of README.md and docs/, run with names and paths adapted; every link, every figure."""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

import timm_lc
from timm_lc.cli import main
from timm_lc.transforms.options import LC_ARGUMENTS

ROOT = Path(__file__).parents[1]
SCRIPTS = os.environ.get('TIMM_SCRIPTS')
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# what stands in a document -> what is run: a small network, small images, short runs
SMALLER = {
    r'^.*timm-lc demo$': 'timm-lc demo --data-dir images',
    r'^torchrun --nproc-per-node 8 -m timm_lc': 'timm-lc',
    r'lc_resnet50\b': 'lc_test_resnet',
    r'lc_resnet20_16x(8|128)\b': 'lc_resnet20_16x1',
    r'demo --data-dir': 'demo --model lc_resnet20_16x1 --epochs 1 --data-dir',
    r'/(imagenet|flowers|cifar10)\b': 'images',
    r'--data cifar10': '--data images --epochs 1 --batch-size 4 --device cpu',
    r'--runs 4': '--runs 1',
    r'reproduce fig1': 'reproduce fig1 --values 1',
}
# in place of timm's scripts, where TIMM_SCRIPTS does not name them: they take the arguments that timm's take
SCRIPT = """
import argparse, sys, timm
from pathlib import Path
parser = argparse.ArgumentParser()
for line in Path(ARGUMENTS).read_text().splitlines()[1:]:
    name, kind = line.split()
    short = {'config': ['-c'], 'batch_size': ['-b'], 'workers': ['-j']}.get(name, [])
    count = {'action': 'store_true'} if kind.startswith('flag') else {'nargs': '*'}
    parser.add_argument(*short, '--' + name.replace('_', '-'), **count)
parser.add_argument('--config', '-c')
parser.add_argument('--checkpoint')
args = parser.parse_args()
assert timm.is_model(args.model[0]), args.model
assert all(Path(path).exists() for path in [*args.data_dir, args.config or '.', args.checkpoint or '.'])
"""


def blocks(language):
    for page in PAGES:
        for number, text in enumerate(re.findall(f'```{language}\n(.*?)```', page.read_text(), re.DOTALL)):
            yield page, number, text


COMMANDS = [(page, line) for page, _, text in blocks('bash') for line in text.splitlines()]
SNIPPETS = list(blocks('python'))


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, images_in):
    """Return a folder with images and the folder of a train.py run, in which the documents' paths exist."""
    folder = tmp_path_factory.mktemp('workplace')
    for split in ('train', 'validation'):
        images_in(folder / 'images' / split)
    run = folder / 'output/train/RUN'
    run.mkdir(parents=True)
    arguments = {'model': 'lc_test_resnet', 'num_classes': 3, 'img_size': 32, 'epochs': 2}
    state = timm.create_model('lc_test_resnet', num_classes=3).state_dict()
    saved = {'epoch': 1, 'arch': 'lc_test_resnet', 'state_dict': state, 'args': argparse.Namespace(**arguments)}
    torch.save(saved, run / 'model_best.pth.tar')
    (run / 'args.yaml').write_text(yaml.safe_dump(arguments))
    (run / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1,eval_top5\n1,1.0,1.1,50.0,100.0\n')
    (folder / 'results').mkdir()
    shutil.copy(ROOT / 'results/queue.txt', folder / 'results')
    for name in ('train.py', 'validate.py'):
        (folder / name).write_text(f'ARGUMENTS = {str(ROOT / "tests/train_arguments.txt")!r}\n{SCRIPT}')
    return folder


@pytest.fixture
def there(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.delenv('TIMM_SCRIPTS', raising=False)
    monkeypatch.setattr(sys, 'argv', ['timm-lc'])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    return workplace


@pytest.mark.parametrize(('page', 'line'), COMMANDS, ids=[f'{page.stem}: {line[:60]}' for page, line in COMMANDS])
def test_every_command_runs(page, line, there):
    if line.endswith('-m pytest -q'):
        assert line in (ROOT / 'README.md').read_text()
        assert "grep -m 1 -- '-m pytest' README.md" in (ROOT / '.ci/run').read_text()  # which runs it
        return
    for words, smaller in SMALLER.items():
        line = re.sub(words, smaller, line)
    command, *arguments = shlex.split(line, comments=True)
    assert command == 'timm-lc', f'nothing here runs {line}'
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ('page', 'number', 'text'), SNIPPETS, ids=[f'{page.stem} {number}' for page, number, _ in SNIPPETS]
)
def test_every_snippet_runs(page, number, text, there):
    needs = re.match('# needs (.*)\n', text)
    if needs:
        pytest.importorskip(needs[1], reason=f'needs {needs[1]}: pip install {needs[1]}')
    names = {}
    exec(text.replace('range(31)', 'range(2)'), names)
    for told in re.findall(r'# ParameterCount\((.*), \.\.\.\)', text):
        assert told in str(timm_lc.count_parameters(names['model']))
    if 'a plain ResNet-20 of' in text:
        assert timm_lc.count_parameters(names['plain']).total == 272_474


@pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])
def test_every_link_leads_somewhere(page):
    for target in re.findall(r'\]\((?!https?:)([^)]+)\)', page.read_text()):
        file, _, anchor = target.partition('#')
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        headings = re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r'[^\w -]', '', text.lower()).replace(' ', '-') for text in headings}


def test_every_file_that_is_named_is_there():
    for page in PAGES:
        for name in re.findall(r'`((?:\.ci|tests|benchmarks|train_configs)/[\w./]+)`', page.read_text()):
            assert (ROOT / name).exists(), f'{page.name} names {name}'


def test_every_keyword_argument_of_lc_models_is_told():
    text = (ROOT / 'docs/how_it_works.md').read_text()
    assert [name for name in LC_ARGUMENTS if f'`{name}' not in text] == []


def test_accuracies_of_the_readme_are_those_of_the_results():
    text = (ROOT / 'README.md').read_text().partition('## Results')[2]
    told = re.findall(r'\d\d\.\d\d(?= %)', text)
    page = (ROOT / 'results/v2-fig4a/table.md').read_text() + (ROOT / 'results/theory2/table.md').read_text()
    assert len(told) == 13  # plain's three times
    assert all(number in page for number in told)


def test_step_times_of_the_readme_are_those_of_the_results():
    text, forms = (ROOT / 'README.md').read_text(), 'as two convolutions|as one|implicit|folded|plain'
    told = {form: seconds for seconds, form in re.findall(rf'([\d.]+) s\s+({forms})', text)}
    names = {('freezing', 'two convolutions'): 'as two convolutions', ('freezing', 'one convolution'): 'as one',
             ('freezing', 'implicit'): 'implicit', ('folded', ''): 'folded', ('plain', ''): 'plain'}  # fmt: skip
    rows = json.loads((ROOT / 'results/bench/bench.json').read_text())['rows']
    measured = {(row['row'], row['form']): row['seconds']['step']['median'] for row in rows}
    steps = {name: measured[key] for key, name in names.items()}
    assert told.keys() == steps.keys()
    for name, seconds in told.items():
        assert float(seconds) == pytest.approx(steps[name], abs=0.5 * 10 ** -len(seconds.partition('.')[2])), name


def test_the_control_of_the_readme_is_that_of_the_results():
    header, _, *found = rows((ROOT / 'results/theory3/theory3-short.md').read_text())
    measured = {(*row[:2], series): cell for row in found for series, cell in zip(header, row, strict=True)}
    points = {
        'plain': ('recipe', 'plain'),
        'frozen random': ('recipe', 'frozen random'),
        'the limit of many filters': ('recipe', 'expected'),
        'learnable': ('recipe', 'learnable'),
        'plain, ten times the learning rate': ('lr 0.1', 'plain'),
        'frozen random, ten times the learning rate': ('lr 0.1', 'frozen random'),
    }
    told = {row[0]: row[1:] for row in rows((ROOT / 'README.md').read_text()) if row[0] in points}
    assert told == {
        name: [measured[(facet, *point)].removesuffix(' (3)') for facet in ('E = 8', 'E = 128')]
        for name, point in points.items()
    }


def test_conditions_of_the_theory_page_are_those_of_the_results():
    measured = {}
    for line in (ROOT / 'results/theory5/runs.jsonl').read_text().splitlines():
        found = json.loads(line)
        measured[found['facet'].removeprefix('k = '), found['x']] = 10 ** found['values']['log_condition']
    table = [row for row in rows((ROOT / 'docs/theory.md').read_text()) if (row[0], 16) in measured]
    assert len(table) == 4
    for kernel, *_, at_16, at_32, at_64, at_128, law in table:
        for expansion, told in ((16, at_16), (32, at_32), (64, at_64), (128, at_128)):
            digits = len(told.partition('.')[2])
            assert float(told) == round(measured[kernel, expansion], digits)
        root, k = 128**0.5, int(kernel)
        assert float(law) == round(((root + k) / (root - k)) ** 2, len(law.partition('.')[2]))


def rows(text):
    """Return the cells of each row of the tables in a page."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def test_accuracies_of_the_adapters_page_are_those_of_the_results():
    results = ROOT / 'results/adapters'
    found = rows((results / 'table.md').read_text().partition('at each learning rate')[0])
    ways = {way: [row[1] for row in found if row[0] == way] for way, *_ in found}
    page = rows((ROOT / 'docs/adapters.md').read_text())
    told = [row for row in page if row[0] in ways and ' ± ' in row[-1]]
    assert len(told) == 9
    assert all(row[3:] == ways[row[0]] for row in told)
    lengths = [row for row in page if '/lengths/' in row[0]]
    assert len(lengths) >= 3
    for base, *values in lengths:
        table = rows((results / re.search(r'lengths/\w+', base)[0] / 'table.md').read_text())
        best = [row for row in table if row[0].startswith(('adapter', 'full'))][:5]
        expected = [f'{accuracy.partition(" ")[0]} ({lr})' for _, accuracy, _, lr, *_ in best]
        assert values == [expected[-1], *expected[:-1]]


@pytest.mark.parametrize(
    ('row', 'kwargs'),
    [
        ('learnable baseline', {'freeze_spatial': False}),
        ('frozen', {}),
        ('shared', {'share_weights': True}),
        ('recycled 1/16', {'share_weights': True, 'recycle': 16}),
    ],
)
def test_counts_of_the_readme_are_those_of_the_networks(row, kwargs):
    with torch.device('meta'):
        counts = timm_lc.count_parameters(timm.create_model('lc_resnet20_16x128', **kwargs))
    assert f'| {row} | {counts.total:,} | {counts.learnable:,} |' in (ROOT / 'README.md').read_text()


@pytest.mark.skipif(not SCRIPTS, reason="set TIMM_SCRIPTS to a folder with timm's scripts")
@pytest.mark.parametrize('name', ['train', 'validate'])
def test_commands_run_timms_own_scripts(name, there):
    line = next(line for _, line in COMMANDS if re.match(f'timm-lc (run )?{name}', line))
    for words, smaller in SMALLER.items():
        line = re.sub(words, smaller, line)
    short = '--epochs 1 --warmup-epochs 0 --amp-dtype bfloat16' if name == 'train' else ''
    small = f'--num-classes 3 --img-size 32 -b 4 -j 0 --device cpu {short}'
    arguments = [*shlex.split(line, comments=True)[1:], *small.split()]
    environment = {**os.environ, 'TIMM_SCRIPTS': str(Path(SCRIPTS).resolve()), 'PYTHONPATH': str(ROOT)}
    (there / f'{name}.py').unlink()  # the stand-in
    done = subprocess.run(
        [sys.executable, '-m', 'timm_lc', *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'top1' in done.stdout
