"""What an adapter costs beside full fine-tuning: a step, its memory, a file, and the switch to another task's.

Seconds are those of this process's CPU time, which other work on the machine changes least. On one thread:
OMP_NUM_THREADS=1 python benchmarks/adapters.py --model resnet50 --batch-size 8
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from timm_lc import add_adapters, load_adapter, save_adapter
from timm_lc.analysis.timing import interleave, timed_step
from timm_lc.inputs import input_size

FULL, ADAPTER = 'full fine-tuning', 'adapter, rank 8'


def build(name, way, **options):
    """Return a network of ten classes that learns one way."""
    model = timm.create_model(name, num_classes=10)
    return add_adapters(model, rank=8, **options) if way == ADAPTER else model


def files(name, folder):
    """Yield what a file holds and its bytes: of an adapter in four forms, and of the network itself."""
    for norms in (False, True):
        model = build(name, ADAPTER, norms=norms)
        for dtype in (torch.bfloat16, torch.float32):
            path = save_adapter(model, folder / 'task.safetensors', dtype=dtype)
            kind = str(dtype).removeprefix('torch.')
            yield f'P and classifier in {kind}, {"norms in float32" if norms else "no norms"}', path.stat().st_size
    save_file(build(name, FULL).state_dict(), folder / 'whole.safetensors')
    yield 'the network itself', (folder / 'whole.safetensors').stat().st_size


def resident(field):
    """Return MiB of this process that Linux calls VmRSS or, at its peak, VmHWM."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak(name, way, shape):
    """Return the MiB by which this process grows at most in two steps of SGD with momentum."""
    before = resident('VmRSS')
    step = timed_step(build(name, way), torch.rand(shape))
    Path('/proc/self/clear_refs').write_text('5')
    step()
    step()
    return resident('VmHWM') - before


def switch(name, folder, rounds):
    """Return the median seconds that it takes to load the file of another task into the same network."""
    model = build(name, ADAPTER)
    paths = []
    for task in range(2):
        model.reset_classifier(10)
        paths.append(save_adapter(model, folder / f'{task}.safetensors', dtype=torch.bfloat16))
    seconds = []
    for index in range(rounds + 1):
        begun = time.process_time()
        load_adapter(model, paths[index % 2])
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet50')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--rounds', type=int, default=9)
    args = parser.parse_args()
    shape = (args.batch_size, *input_size(timm.create_model(args.model)))
    steps = {
        way: timed_step(build(args.model, way), torch.rand(shape), clock=time.process_time) for way in (FULL, ADAPTER)
    }
    seconds = {way: parts['step'] for way, parts in interleave(steps, args.rounds, max_seconds=60.0).items()}
    del steps
    ratio = statistics.median(b / a for a, b in zip(seconds[FULL], seconds[ADAPTER], strict=True))
    print('| what learns | step, CPU s | memory of two steps, peak MiB |\n|---|---|---|')
    for way, values in seconds.items():
        with multiprocessing.get_context('spawn').Pool(1) as fresh:
            print(f'| {way} | {statistics.median(values):.3f} | {fresh.apply(peak, (args.model, way, shape)):,.0f} |')
    print(
        f'\nstep of the adapter over that of full fine-tuning: {ratio:.3f}, median of {args.rounds} interleaved pairs'
    )
    with tempfile.TemporaryDirectory() as folder:
        print(f'to switch to another task: {1000 * switch(args.model, Path(folder), args.rounds):.0f} CPU ms\n')
        print('| a file of | bytes |\n|---|---|')
        for kind, size in files(args.model, Path(folder)):
            print(f'| {kind} | {size:,} |')
    print(f'\n{shape}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}')


if __name__ == '__main__':
    main()
