"""The outcomes of stock_scripts.py as results/stock_scripts.md."""

import hashlib
import os
import platform
import re
import statistics
from collections import Counter
from importlib import metadata

import torch
from stock_cases import STOCK, VARIANTS

GOOD = ('passes', 'refused')


def as_markdown(outcomes, args):
    """Return a table for each script, then what does not pass and what is refused, with what the script said."""
    tried = [outcome for outcome in outcomes if outcome['outcome'] != 'refused']
    lines = heading(outcomes, args)
    for script in dict.fromkeys(outcome['script'] for outcome in tried):
        lines += ['', f'## {script}', '', *flag_table([o for o in tried if o['script'] == script])]
    lines += detail_table('What does not pass', [o for o in tried if o['outcome'] != 'passes'])
    lines += detail_table('What is refused, as it should be', [o for o in outcomes if o['outcome'] == 'refused'])
    return '\n'.join([*lines, ''])


def heading(outcomes, args):
    from timm_lc.training.trainer import describe_device  # once the repository is on the path

    machine = describe_device(torch.device('cpu'))
    command = 'python benchmarks/stock_scripts.py' + (' --full' if args.full else '')
    train = hashlib.sha256((args.scripts / 'train.py').read_bytes()).hexdigest()
    return [
        "# timm's own scripts on `lc_` networks",
        '',
        f'`TIMM_SCRIPTS=... {command}`: {machine}, {os.cpu_count()} cores, one thread a process; {versions()};',
        f'train.py of SHA-256 {train[:12]}.',
        '',
        'The scripts are untouched. train.py runs with `--device-modules timm_lc`, the others as `timm-lc run`, on',
        'images of 32 pixels in 4 classes, for an epoch or two of 4 steps. After each training the filters in the',
        'memory of every rank, in the averaged (EMA) network and in a network of other filters that loads the',
        'checkpoint are those of a new network, to the bit. Validation finds the accuracy that training logged, and',
        f'onnxruntime computes what the network does to 1e-4. {summed(outcomes)}.',
        '',
        '- A cell lists the variants that pass: ' + '; '.join(map(describe, VARIANTS)) + '.',
        '- Without `--full`, which tries all variants of all networks, those other than lc_resnet18 are tried plain.',
        '- Seconds are the median of a row, start-up included, on a machine that was shared.',
        '- train.py gives DistributedDataParallel `device_ids`, which it refuses on a CPU; "device_ids dropped" is',
        '  with `--device-modules timm_lc cpu_ddp` (benchmarks/cpu_ddp.py).',
        '- onnx_export.py has no `--model-kwargs`: what is not in a checkpoint reaches it by `local-dir:`.',
        '- inference.py needs pandas, onnx_export.py `timm_lc[onnx]`; without them they fail, in stock timm too.',
    ]


def summed(outcomes):
    counts = Counter(outcome['outcome'] for outcome in outcomes)
    return ', '.join(f'{count} {kind}' for kind, count in counts.items())


def describe(variant):
    kwargs = ' '.join(f'{name}={value}' for name, value in VARIANTS[variant].items())
    return f'{variant} (`--model-kwargs {kwargs}`)' if kwargs else variant


def versions():
    packages = [name for name in ('torch', 'timm', 'onnx', 'onnxruntime', 'pandas', 'pillow') if has(name)]
    return ', '.join(
        [f'python {platform.python_version()}', *(f'{name} {metadata.version(name)}' for name in packages)]
    )


def has(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def flag_table(outcomes):
    """Return the table of a script: a row for each set of flags, a column for each network."""
    lines = [f'| flags | {" | ".join(STOCK)} | seconds |', '|---' * (len(STOCK) + 2) + '|']
    for label in dict.fromkeys(outcome['label'] for outcome in outcomes):
        row = [outcome for outcome in outcomes if outcome['label'] == label]
        columns = [summary([o for o in row if o['cell'].split()[0] == model]) for model in STOCK]
        seconds = statistics.median(outcome['seconds'] for outcome in row)
        lines.append(f'| {shown(label)} | {" | ".join(columns)} | {seconds:.1f} |')
    return lines


def summary(outcomes):
    """Return the variants of a network by outcome; those that pass go without a word."""
    kinds = {}
    for outcome in outcomes:
        kinds.setdefault(outcome['outcome'], []).append(outcome['cell'].split()[1])
    parts = [listed(names) if kind in GOOD else f'**{kind}**: {listed(names)}' for kind, names in kinds.items()]
    return '; '.join(parts)


def listed(variants):
    return 'all four' if len(variants) == len(VARIANTS) else ', '.join(variants)


def grouped(cells):
    """Return 'NETWORK (VARIANTS), ...' for cells 'NETWORK VARIANT'."""
    variants = {}
    for cell in cells:
        model, variant = cell.split()
        variants.setdefault(model, []).append(variant)
    return ', '.join(f'{model} ({listed(names)})' for model, names in variants.items())


def detail_table(title, outcomes):
    """Return what the script said, once for all cells of a row that failed alike."""
    if not outcomes:
        return []
    groups = {}
    for outcome in outcomes:
        said = outcome['script'], outcome['label'], outcome['outcome'], outcome['message'], outcome.get('stock', '')
        groups.setdefault(said, []).append(outcome['cell'])
    lines = ['', f'## {title}', '', '| script and flags | network | last line | stock timm |', '|---|---|---|---|']
    for (script, label, kind, message, stock), names in groups.items():
        outcome = '' if kind in GOOD else f'{kind}: '
        theirs = 'the same' if stock == message else quoted(stock)
        lines.append(f'| {script} {shown(label)} | {grouped(names)} | {outcome}{quoted(message)} | {theirs} |')
    return lines


def shown(label):
    flags, _, note = label.partition(' (')
    flags = re.sub(r'{(\w+)}', lambda match: match.group(1).upper(), flags)
    return ' '.join(filter(None, [f'`{flags}`' if flags else '', f'({note}' if note else '']))


def quoted(message):
    return f'`{message.replace("|", "/").replace("`", "")}`' if message else ''
