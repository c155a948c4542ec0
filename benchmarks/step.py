"""Time and peak memory of a training step, an import and a build, against the networks they replace.

Times are of interleaved runs in one process; peak memory is the highest resident set of a fresh process over what it
holds before it builds the network. Writes results/step.md and results/step.json.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import timm
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import timm_lc  # noqa: E402

IMPORT = 'import time, timm; start = time.perf_counter(); import timm_lc; print(time.perf_counter() - start)'


def two_convolutions():
    """Return LCResNet-20-16x128 with each block as the paper computes it: spatial, then pointwise convolution."""
    model = timm.create_model('lc_resnet20_16x128')
    for module in list(model.modules()):
        for name, block in list(module.named_children()):
            if isinstance(block, timm_lc.LCConv2d):
                setattr(module, name, nn.Sequential(block.spatial, block.pointwise))
    return model


NETWORKS = {
    'one convolution': functools.partial(timm.create_model, 'lc_resnet20_16x128'),
    'two convolutions': two_convolutions,
    'plain ResNet-20': functools.partial(timm.create_model, 'lc_lowres_resnet20', freeze_spatial=False),
    'learnable ResNet-50': functools.partial(timm.create_model, 'lc_resnet50', freeze_spatial=False),
    'frozen ResNet-50': functools.partial(timm.create_model, 'lc_resnet50'),
    'shared ResNet-50': functools.partial(timm.create_model, 'lc_resnet50', share_weights=True),
}
SMALL, LARGE = (64, 3, 32, 32), (256, 3, 32, 32)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, epilog='Example: python benchmarks/step.py --rounds 7')
    parser.add_argument('--rounds', type=int, default=9, help='interleaved runs of each network (default: %(default)s)')
    parser.add_argument('--slow-rounds', type=int, default=3, help='those of two convolutions (default: %(default)s)')
    parser.add_argument('--image-size', type=int, default=160, help='of ResNet-50, batch 16 (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=ROOT / 'results', help='folder to write to (default: results)')
    parser.add_argument('--peak', nargs=2, metavar=('NETWORK', 'SHAPE'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        print(peak_memory(args.peak[0], json.loads(args.peak[1])))
        return 0
    report = measure(args)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / 'step.json').write_text(json.dumps(report, indent=1) + '\n')
    (args.output / 'step.md').write_text(as_markdown(report))
    print(as_markdown(report))
    return 0


def measure(args):
    """Return everything that is measured, with targets and outcomes."""
    image = (16, 3, args.image_size, args.image_size)
    plan = [
        (['one convolution', 'plain ResNet-20', 'two convolutions'], SMALL),
        (['one convolution', 'plain ResNet-20'], LARGE),
        (['learnable ResNet-50', 'frozen ResNet-50', 'shared ResNet-50'], image),
    ]
    rows = [row for names, shape in plan for row in measure_group(names, shape, args.rounds, args.slow_rounds)]
    imports = measure_imports(args.rounds)
    builds = measure_builds(args.rounds)
    return {
        'command': ' '.join(['python benchmarks/step.py', *sys.argv[1:]]),
        'hardware': f'{cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads',
        'versions': {'python': platform.python_version()}
        | {name: metadata.version(name) for name in ('torch', 'timm')},
        'steps': rows,
        'import timm_lc over import timm': imports,
        'builds': builds,
        'targets': compare(rows, imports, builds),
    }


def measure_group(names, shape, rounds, slow_rounds):
    """Time interleaved steps of some networks on one input shape, then the peak memory of each."""
    steps = {name: make_step(name, shape) for name in names}
    times = {name: [] for name in names}
    for index in range(-1, rounds):  # the first is a warm-up
        for name, step in steps.items():
            if name == 'two convolutions' and not 0 <= index < slow_rounds:
                continue
            start = time.perf_counter()
            step()
            if index >= 0:
                times[name].append(time.perf_counter() - start)
        progress(f'{shape}: round {index + 1} of {rounds}')
    del steps
    return [{'network': n, 'shape': shape, **spread(times[n]), 'peak': peak_in_child(n, shape)} for n in names]


def make_step(name, shape):
    """Return a function that does a forward and backward pass on (N, 3, H, W), and for ResNet-50 a step of SGD."""
    model = NETWORKS[name]().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, target = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        if 'ResNet-50' in name:
            optimizer.step()

    return step


def peak_memory(name, shape):
    """Return the bytes by which the resident set of this process peaks over its present size in training."""
    nn.Conv2d(3, 4, 3)(torch.zeros(1, 3, 8, 8)).sum().backward()  # thread pools and kernels are no part of a network
    Path('/proc/self/clear_refs').write_text('5')
    before = resident('VmRSS')
    step = make_step(name, shape)
    for _ in range(2 if 'ResNet-50' in name else 1):  # the second has the optimizer's state
        step()
    return resident('VmHWM') - before


def resident(field):
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_in_child(name, shape):
    progress(f'{shape}: peak memory of {name}')
    command = [sys.executable, __file__, '--peak', name, json.dumps(shape)]
    repeats = 3 if 'ResNet-50' in name else 1
    runs = (subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats))
    return statistics.median(int(run.stdout) for run in runs)


def measure_imports(rounds):
    """Time `import timm_lc` in fresh processes that have imported timm."""
    progress('imports')
    command = [sys.executable, '-c', IMPORT]
    runs = (subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT) for _ in range(rounds + 1))
    return spread([float(run.stdout) for run in runs][1:])  # the first may compile bytecode


def measure_builds(rounds):
    """Time `create_model` of ResNet-50, stock and frozen, interleaved."""
    progress('builds')
    times = {'resnet50': [], 'lc_resnet50': []}
    for index in range(-1, rounds):
        for name, values in times.items():
            start = time.perf_counter()
            timm.create_model(name)
            if index >= 0:
                values.append(time.perf_counter() - start)
    return {name: spread(values) for name, values in times.items()}


def compare(rows, imports, builds):
    """Return each target of the project with its outcome."""
    row = {(r['network'], r['shape'][0]): r for r in rows}
    one, two, plain = (row[n, 64] for n in ('one convolution', 'two convolutions', 'plain ResNet-20'))
    learnable, frozen, shared = (row[f'{n} ResNet-50', 16] for n in ('learnable', 'frozen', 'shared'))
    large = row['one convolution', 256]['median'] / row['plain ResNet-20', 256]['median']
    outcomes = [
        ('one convolution: times faster than two, batch 64', two['median'] / one['median'], '>=', 100),
        ('one convolution: time over plain ResNet-20, batch 64', one['median'] / plain['median'], '<=', 1.6),
        ('one convolution: time over plain ResNet-20, batch 256', large, '<=', 1.25),
        ('one convolution: peak memory over two', one['peak'] / two['peak'], '<=', round(1 / 6, 3)),
        ('frozen ResNet-50: time over learnable', frozen['median'] / learnable['median'], '<=', 0.90),
        ('shared ResNet-50: time over frozen', shared['median'] / frozen['median'], '<=', 1.03),
        ('shared ResNet-50: peak memory over frozen', shared['peak'] / frozen['peak'], '<=', 1),
        ('import timm_lc over import timm, seconds', imports['median'], '<=', 0.2),
        ('create lc_resnet50 over resnet50', builds['lc_resnet50']['median'] / builds['resnet50']['median'], '<=', 1.5),
    ]
    return [
        {
            'what': what,
            'value': value,
            'target': f'{sign} {bound}',
            'met': value >= bound if sign == '>=' else value <= bound,
        }
        for what, value, sign, bound in outcomes
    ]


def as_markdown(report):
    """Return the report as two tables."""
    versions = ', '.join(f'{name} {version}' for name, version in report['versions'].items())
    lines = [
        '# A training step, an import, a build',
        '',
        f'`{report["command"]}`: {report["hardware"]}; {versions}.',
        '',
    ]
    lines += [
        'A step is forward and backward, for ResNet-50 also SGD with momentum. Times are of interleaved runs in one',
        'process; peak memory is over that of the process before it builds the network, for ResNet-50 the median of',
        'three processes. One and two convolutions are LCResNet-20-16x128, frozen.',
        '',
        '| network | batch | median | fastest to slowest | peak memory |',
        '|---|---|---|---|---|',
    ]
    for row in report['steps']:
        shape = 'x'.join(map(str, row['shape']))
        peak = f'{row["peak"] / 2**20:,.0f} MiB'
        lines.append(f'| {row["network"]} | {shape} | {as_range(row)} | {peak} |')
    for name, build in report['builds'].items():
        lines.append(f"| `create_model('{name}')` | | {as_range(build)} | |")
    lines.append(f'| `import timm_lc` over `import timm` | | {as_range(report["import timm_lc over import timm"])} | |')
    lines += ['', '| target | measured | wanted | met |', '|---|---|---|---|']
    for target in report['targets']:
        met = 'yes' if target['met'] else 'no'
        lines.append(f'| {target["what"]} | {target["value"]:.3g} | {target["target"]} | {met} |')
    return '\n'.join([*lines, ''])


def as_range(times):
    return f'{1e3 * times["median"]:,.0f} ms | {1e3 * times["min"]:,.0f} to {1e3 * times["max"]:,.0f} ms'


def spread(times):
    return {'median': statistics.median(times), 'min': min(times), 'max': max(times), 'runs': len(times)}


def cpu_model():
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return next((line.split(': ')[1] for line in lines if line.startswith('model name')), platform.processor())


def progress(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == '__main__':
    sys.exit(main())
