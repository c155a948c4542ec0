"""`timm-lc bench`: time and memory of a network's forms beside the plain one."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import add_model_kwargs, check_model

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'time a training step of a network frozen, shared, recycled, pruned, implicit and folded, beside the plain one'
EXAMPLE = (
    'timm-lc bench --models lc_resnet20_16x8 --only "plain|freezing" --rounds 5 --expansions --output output/bench'
)
EXPANSIONS = (1, 4, 16, 64, 256, 1024, 4096)
SETTINGS = ('batch_size', 'image_size', 'rounds', 'amp', 'channels_last', 'compile', 'max_seconds', 'max_memory')
MEASURED = ('models', 'model_kwargs', 'only', 'device', 'expansions', *SETTINGS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc bench`."""
    parser.add_argument(
        '--models', nargs='+', default=['lc_resnet20_16x128'], metavar='NAME', help='(default: lc_resnet20_16x128)'
    )
    add_model_kwargs(parser)
    parser.add_argument('--only', default='', metavar='REGEX', help='only rows whose name matches; plain is always one')
    parser.add_argument('--batch-size', type=int, default=64, help='(default: %(default)s)')
    parser.add_argument('--image-size', type=int, help="pixels of a side (default: the network's own)")
    parser.add_argument('--rounds', type=int, default=9, help='interleaved steps of each (default: %(default)s)')
    _add_speed(parser)
    parser.add_argument(
        '--expansions',
        type=int,
        nargs='*',
        default=EXPANSIONS,
        metavar='E',
        help='of the figure of LC-Blocks; without a number none (default: 1 4 16 ... 4096, as far as bounds allow)',
    )
    parser.add_argument(
        '--max-seconds', type=float, default=30.0, help='past which one round is enough (default: %(default)s)'
    )
    parser.add_argument(
        '--max-memory', type=float, default=3.0, metavar='GIB', help='of an expansion at most (default: %(default)s)'
    )
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('output/bench'),
        help='folder of bench.json, table.md and the figure (%(default)s)',
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    """Add where and how networks compute."""
    parser.add_argument('--device', help='cpu or cuda (default: cuda if there is one)')
    parser.add_argument(
        '--amp', nargs='?', const='bfloat16', choices=('bfloat16', 'float16'), help='autocast (default type: bfloat16)'
    )
    parser.add_argument('--channels-last', action='store_true', help='channels_last memory')
    parser.add_argument(
        '--compile',
        nargs='?',
        const='reduce-overhead',
        choices=('default', 'reduce-overhead', 'max-autotune'),
        help='torch.compile in a mode (default mode: reduce-overhead, on a GPU with CUDA graphs)',
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the page and write it."""
    from timm_lc.commands._arguments import device_of
    from timm_lc.paper.bench import Settings, measure_bench, measure_sweep
    from timm_lc.paper.bench_page import draw_sweep
    from timm_lc.paper.plots import require_plots

    settings = Settings(device_of(args), **{name: getattr(args, name) for name in SETTINGS})
    if args.expansions:
        require_plots()
        if min(args.expansions) < 1:
            raise ValueError(f'`expansions` must be positive integers, got {min(args.expansions)}')
    networks = {name: _rows(name, args) for name in args.models}
    name, found = next(iter(networks.items()))
    forms = list(dict.fromkeys(case.form for case in found if case.form))
    if args.expansions and args.expansions is not EXPANSIONS and not forms:
        raise ValueError(f'`--expansions` are of LC-Blocks, of which no row of {name} is measured')
    report = measure_bench(networks, settings, _command(args))
    if args.expansions and forms:
        _write(report, args.output)  # the sweep takes minutes
        plain = report['rows'][0]  # of the first model
        report['sweep'] = measure_sweep(name, forms, args.expansions, settings, plain, **args.model_kwargs)
        draw_sweep(report['sweep'], report, args.output / 'expansions')
    print(_write(report, args.output), end='')


def _write(report: dict[str, Any], folder: Path) -> str:
    """Write the measurements and their page, and return it."""
    import json

    from timm_lc.paper.bench_page import bench_page
    from timm_lc.training.files import write_text

    page = bench_page(report)
    write_text(folder / 'bench.json', json.dumps(report, indent=1) + '\n')
    write_text(folder / 'table.md', page)
    return page


def _rows(name: str, args: argparse.Namespace) -> list[Any]:
    """Return the rows of a model whose names match `--only`, and the plain one."""
    check_model(name)
    from timm_lc.paper.bench_cases import PLAIN, cases

    try:
        pattern = re.compile(args.only)
    except re.error as error:
        raise ValueError(f'`--only {args.only}` is no regular expression: {error}') from None
    found = cases(name, **args.model_kwargs)
    if not any(pattern.search(case.name) for case in found):
        names = ', '.join(case.name for case in found)
        raise ValueError(f'`--only {args.only}` matches no row of {name}: they are {names}')
    return [case for case in found if case.row == PLAIN or pattern.search(case.name)]


def _command(args: argparse.Namespace) -> str:
    """Return the command that measures the same: what differs from the defaults, but where it is written."""
    words = ['timm-lc', 'bench']
    for name in MEASURED:
        value = getattr(args, name)
        if value != args.subparser.get_default(name):
            words.append(f'--{name.replace("_", "-")}')
            pairs = [f'{key}={item}' for key, item in value.items()] if isinstance(value, dict) else value
            words += [] if value is True else map(str, pairs) if isinstance(pairs, list) else [str(value)]
    return shlex.join(words)
