"""Time a training step of implicit LCResNet-20-16x{E} over E, all in one interleaved run: results/bench/implicit.md.

    python benchmarks/implicit_steps.py --rounds 31 --output results/bench/implicit.md

`timm-lc bench` sweeps one expansion after the other, so that what else a machine does falls on some of them.
"""

import argparse
import shlex
import sys
from pathlib import Path

import timm
import torch

from timm_lc.analysis.timing import interleave, quartiles, timed_step
from timm_lc.training.trainer import describe_device, versions


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--expansions', type=int, nargs='+', default=[16, 128, 4096], help='(default: %(default)s)')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[64, 256], help='(default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=31, help='interleaved steps of each (default: %(default)s)')
    parser.add_argument('--output', type=Path, help='file of the table (default: printed alone)')
    args = parser.parse_args()
    models = {'plain': timm.create_model('lc_lowres_resnet20', freeze_spatial=False)} | {
        f'E = {expansion:,}': timm.create_model('lc_resnet_cifar', expansion=expansion, implicit=True)
        for expansion in args.expansions
    }
    where = ', '.join(f'{key} {value}' for key, value in versions().items())
    lines = [
        '# A training step of implicit LCResNet-20-16x{E}, interleaved',
        f'`{shlex.join(["python", *sys.argv])}`',
        f'{describe_device(torch.device("cpu"))}, {torch.get_num_threads()} threads, float32; {where}. Milliseconds on '
        f'the clock, median (quartiles) of {args.rounds} rounds; the ratio is of medians.',
    ]
    lines += [table(models, batch_size, args.rounds, f'E = {args.expansions[0]:,}') for batch_size in args.batch_sizes]
    text = '\n\n'.join(lines) + '\n'
    print(text)
    if args.output:
        args.output.write_text(text, encoding='utf-8')


def table(models, batch_size, rounds, first):
    images = torch.rand(batch_size, 3, 32, 32)
    calls = {name: timed_step(model, images) for name, model in models.items()}
    found = interleave(calls, rounds, warmups=2, max_seconds=float('inf'), title=f'batch {batch_size}')
    steps = {name: quartiles([1e3 * seconds for seconds in parts['step']]) for name, parts in found.items()}
    rows = [
        f'| {name} | {step.median:.1f} ({step.low:.1f} to {step.high:.1f}) | {step.median / steps[first].median:.3f} | '
        f'{step.median / steps["plain"].median:.3f} |'
        for name, step in steps.items()
    ]
    head = [f'| batch {batch_size} | step [ms] | over {first} | over plain |', '| --- | --- | --- | --- |']
    return '\n'.join([*head, *rows])


if __name__ == '__main__':
    main()
