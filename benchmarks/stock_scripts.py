"""Run timm's own scripts, from a checkout of timm, on `lc_` networks, and write which flags work.

Each case of stock_cases.py runs in a folder of its own and is judged by stock_checks.py. What fails is asked of the
stock network too. Outcomes are kept in the work folder, so an interrupted run goes on where it was. Without --data-dir
the images are made up: noise around a colour of their class.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import stock_checks
import timm
from PIL import Image
from stock_cases import CASES, FIRST, Case, Cell, cells
from stock_report import as_markdown

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import timm_lc  # noqa: E402, F401  # registers the names

EXAMPLE = "Example: TIMM_SCRIPTS=pytorch-image-models python benchmarks/stock_scripts.py --only 'model-ema.*resnet18'"
TIMEOUT = 900  # seconds of one command
COLOURS = np.array([[160, 96, 96], [96, 160, 96], [96, 96, 160], [128, 128, 128]])
LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Run:
    """A case that has run on a cell: its folder, that of the cell's first training, and what came of it."""

    case: Case
    cell: Cell
    folder: Path
    base: Path
    data: Path
    status: int
    output: str


@dataclasses.dataclass(frozen=True)
class Place:
    """The folders of all runs."""

    work: Path
    data: Path


def main(argv=None):
    args = parse(argv)
    place = prepare(args)
    chosen = [(case, cell) for case in CASES for cell in cells(args.full) if case.is_for(cell)]
    outcomes = read_outcomes(place.work)
    todo = [pair for pair in chosen if re.search(args.only, key(*pair)) and (args.again or key(*pair) not in outcomes)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for number, outcome in enumerate(pool.map(lambda pair: judge(*pair, place), todo), 1):
            outcomes[outcome['key']] = outcome
            done = f'{number} of {len(todo)}, {outcome["seconds"]:.1f} s: {outcome["key"]}: {outcome["outcome"]}'
            print(done, file=sys.stderr, flush=True)
    found = [outcomes[key(*pair)] for pair in chosen if key(*pair) in outcomes]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(as_markdown(found, args))
    return int(any(outcome['outcome'] == 'fails' for outcome in found))


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument('--only', default='', metavar='REGEX', help='cases to run, as "SCRIPT FLAGS | MODEL VARIANT"')
    parser.add_argument('--full', action='store_true', help='each case for all variants of all networks')
    parser.add_argument('--again', action='store_true', help='run those that have an outcome, too')
    parser.add_argument('--jobs', type=int, default=1, help='cases at a time (default: %(default)s)')
    parser.add_argument('--data-dir', type=Path, help='ImageFolder tree of at most 4 classes (default: made up)')
    parser.add_argument('--work', type=Path, default=ROOT / 'output' / 'stock_scripts', help='folder of the runs')
    parser.add_argument('--output', type=Path, default=ROOT / 'results' / 'stock_scripts.md', help='table to write')
    args = parser.parse_args(argv)
    args.scripts = Path(os.environ.get('TIMM_SCRIPTS', ''))
    if not (args.scripts / 'bulk_runner.py').is_file():
        parser.error(
            'a checkout of timm is needed: git clone https://github.com/huggingface/pytorch-image-models and set '
            'TIMM_SCRIPTS=pytorch-image-models'
        )
    return args


def prepare(args):
    """Make the folders that all cases need."""
    work = args.work.resolve()
    (work / 'scripts').mkdir(parents=True, exist_ok=True)
    for script in args.scripts.glob('*.py'):  # alone: beside the checkout's own timm they would import that
        shutil.copy2(script, work / 'scripts')
    if not (work / 'teacher').is_dir():
        timm.models.save_for_hf(timm.create_model('resnet18', num_classes=4), work / 'teacher', safe_serialization=True)
    if args.data_dir:
        return Place(work, args.data_dir.resolve())
    make_images(work / 'data')
    return Place(work, work / 'data')


def make_images(folder, counts=(('train', 16), ('validation', 8))):
    """Write 4 classes of 32 pixel images, `counts` of each class in each split."""
    random = np.random.default_rng(0)
    for split, count in counts:
        for label, colour in enumerate(COLOURS):
            (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = colour + random.integers(-64, 64, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / str(label) / f'{label}-{index}.png')


def read_outcomes(work):
    path = work / 'outcomes.jsonl'
    lines = path.read_text().splitlines() if path.is_file() else []
    return {outcome['key']: outcome for outcome in map(json.loads, lines)}


def key(case, cell):
    return f'{case.title} | {cell}'


def judge(case, cell, place):
    """Run a case and, if it fails, the stock network; keep the outcome and return it."""
    names = {'key': key(case, cell), 'script': case.script, 'label': case.label, 'cell': str(cell)}
    outcome = names | attempt(case, cell, place)
    if outcome['outcome'] == 'fails' and case.has_stock:
        stock = attempt_stock(case, Cell(cell.model, 'stock'), place)
        outcome['stock'] = stock['message'] or stock['outcome']
        if stock['outcome'] == 'fails':
            outcome['outcome'] = 'needs a GPU' if case.needs_gpu else 'fails in stock timm too'
    with LOCK, (place.work / 'outcomes.jsonl').open('a') as file:
        file.write(json.dumps(outcome) + '\n')
    return outcome


def attempt_stock(case, cell, place):
    """Attempt a case once for all variants of a network."""
    with lock(cell):
        return _attempt_once(case, cell, place)


def attempt(case, cell, place):
    """Return the outcome of a case on a cell, its seconds, and what was said if it was refused or failed."""
    start = time.perf_counter()
    try:
        base = train_first(cell, place)
        start = time.perf_counter()
        run = execute(case, cell, place, base)
        seconds = time.perf_counter() - start
        message = check(run)
    except Exception as error:  # whatever a script did wrong
        text = str(error) if isinstance(error, stock_checks.Failure) else f'{type(error).__name__}: {error}'
        return {'outcome': 'fails', 'seconds': time.perf_counter() - start, 'message': clean(text, place)}
    shutil.rmtree(run.folder)
    return {'outcome': 'refused' if case.expect else 'passes', 'seconds': seconds, 'message': clean(message, place)}


_attempt_once = functools.cache(attempt)


def check(run):
    """Return what the script said if that is wanted, nothing if it passes.

    Raises:
        stock_checks.Failure: If the run did something else.
    """
    said = last_error(run.output)
    if run.case.expect:
        stock_checks.require(run.status and re.search(run.case.expect, said), f'not refused as wanted: {said}')
        return said
    stock_checks.require(run.status == 0, said)
    getattr(stock_checks, run.case.check)(run)
    return ''


@functools.cache
def lock(cell):
    return threading.RLock()


def train_first(cell, place):
    """Return the folder of a cell's first training, with its checkpoints and an export for `local-dir:`."""
    folder = place.work / 'first' / slug(str(cell))
    with lock(cell):
        if not (folder / 'exported').is_dir():
            run = execute(FIRST, cell, place, folder)
            check(run)
            shutil.move(run.folder, folder)
            model = stock_checks.build.__wrapped__(cell)
            model.load_state_dict(timm.models.load_state_dict(folder / 'run' / 'last.pth.tar'))
            timm.models.save_for_hf(model, folder / 'exported', safe_serialization=True)
    return folder


def execute(case, cell, place, base):
    """Run the command of a case in a new folder."""
    folder = place.work / 'runs' / slug(key(case, cell))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = command_line(case, cell, place, base)
    paths = [str(ROOT), str(ROOT / 'benchmarks'), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(paths),
        'FILTER_PROBE': str(folder),
        'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1'),
        'HF_HUB_OFFLINE': '1',
    }
    with (folder / 'log.txt').open('w') as log:
        status = wait(
            subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        )
    return Run(case, cell, folder, base, place.data, status, (folder / 'log.txt').read_text())


def wait(process):
    """Return the exit status of a process; one that takes too long is ended with its children."""
    try:
        return process.wait(TIMEOUT)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def command_line(case, cell, place, base):
    """Fill the placeholders of a case's command."""
    kwargs = cell.kwargs | ({'seed': case.seed} if case.seed and not cell.is_stock else {})
    modules = [*case.modules] if cell.is_stock else ['timm_lc', 'filter_probe', *case.modules]
    python = shlex.quote(sys.executable)
    options = [f'{name}={value}' for name, value in kwargs.items()]
    text = case.command.format(
        python=python,
        run=python if cell.is_stock else f'{python} -m timm_lc run',
        torchrun=f'{python} -m torch.distributed.run --standalone --nproc-per-node 2',
        name=cell.name,
        model=' '.join(['--model', cell.name, *(['--model-kwargs', *options] if options else [])]),
        modules=' '.join(['--device-modules', *modules]) if modules else '',
        data=place.data,
        teacher=place.work / 'teacher',
        checkpoint=base / 'run' / 'last.pth.tar',
        runs=base / 'run',
        exported=base / 'exported',
    )
    scripts = {path.name: str(path) for path in (place.work / 'scripts').glob('*.py')}
    return [scripts.get(word, word) for word in shlex.split(text)]


def slug(text):
    return re.sub(r'[^\w.=-]+', '_', text)


def last_error(output):
    """Return the line of a script's output that says what went wrong; an assertion without words is shown itself."""
    lines = [re.sub(r'^\[rank\d+\]: ?', '', line).strip() for line in output.splitlines() if line.strip()]
    said = r'(?!\S*ChildFailedError)([\w.]+(Error|Exception|Exit)\b|\S+: error: )'
    found = [index for index, line in enumerate(lines) if re.match(said, line)]
    if not found:
        return lines[-1] if lines else ''
    line = lines[found[-1]]
    return f'{line}: {lines[found[-1] - 1]}' if line == 'AssertionError' else line


def clean(text, place):
    """Return a message on one line, without the paths of this machine."""
    for path, name in ((place.work, ''), (ROOT, ''), (Path.home(), '~')):
        text = text.replace(f'{path}/', name and f'{name}/')
    return ' '.join(text.split())[:300]


if __name__ == '__main__':
    sys.exit(main())
