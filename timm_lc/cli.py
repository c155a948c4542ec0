"""The command `timm-lc`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timm_lc.commands._arguments import (
    add_export_arguments,
    add_model_kwargs,
    add_push_arguments,
    known_model,
    run_export,
    run_push,
)
from timm_lc.commands.prune import add_prune_arguments, run_prune

__all__ = ['main']


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status. Errors of the user leave with status 2 and one line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    own = argv[:2] if argv[:1] == ['run'] else argv  # argparse would take `--` out of a script's arguments
    args, script_arguments = _parser().parse_known_args(own)
    script_arguments += argv[len(own) :]
    if 'arguments' in args:
        args.arguments += script_arguments
    elif script_arguments:
        args.subparser.error(f'unrecognized arguments: {" ".join(script_arguments)}')
    try:
        args.handler(args)
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        args.subparser.error(str(error))
    except KeyboardInterrupt:
        return 130
    if 'arguments' in args:  # what a script raises is its own affair
        from timm_lc.commands._scripts import run_script

        run_script(args.script, args.arguments)
    return 0


def _list(args: argparse.Namespace) -> None:
    import timm

    import timm_lc  # noqa: F401  # registers the names

    names = timm.list_models(args.filter if args.filter.startswith('lc_') else f'lc_*{args.filter}*')
    if not names:
        raise ValueError(f'no lc_ model matches {args.filter!r}; `timm-lc list` shows all')
    print('\n'.join(names))


def _info(args: argparse.Namespace) -> None:
    known_model(args.model)
    if args.steps:
        from timm_lc.paper.sizes import steps_page

        print(steps_page(args.model, **args.model_kwargs), end='')
        return
    from timm_lc.commands.description import describe

    info = describe(args.model, **args.model_kwargs)
    width = max((len(layer.name) for layer in info.layers), default=5) + 2
    print(f'{"layer":<{width}}{"role":<20}{"kernel":<8}{"shape":<24}state')
    for layer in info.layers:
        kernel = f'{layer.shape[2]}x{layer.shape[3]}'
        print(f'{layer.name:<{width}}{layer.role:<20}{kernel:<8}{" x ".join(map(str, layer.shape)):<24}{layer.state}')
    counts = info.parameters
    size = 'x'.join(map(str, info.input_size))
    print(f'\nparameters: {counts.learnable:,} learnable, {counts.total:,} total, {counts.stored:,} stored')
    print(f'checkpoint: {info.checkpoint_bytes:,} bytes; multiply-adds for one {size} image: {info.multiply_adds:,}')


def _demo(args: argparse.Namespace) -> None:
    known_model(args.model)
    from timm_lc.commands.demo import run

    run(args)


def _cifar(args: argparse.Namespace) -> None:
    known_model(args.model)
    from timm_lc.commands.reproduce import run_cifar

    run_cifar(args)


def _reproduce(args: argparse.Namespace) -> None:
    from timm_lc.commands.reproduce import run_reproduce

    run_reproduce(args)


def _report(args: argparse.Namespace) -> None:
    from timm_lc.paper.report import write_report

    print('\n'.join(map(str, write_report(args.directory))))


def _train(args: argparse.Namespace) -> None:
    from timm_lc.commands._scripts import find_train_script

    options = argparse.ArgumentParser(add_help=False)
    options.add_argument('--model', default='')
    options.add_argument('--opt', default='')
    known, _ = options.parse_known_args(args.arguments)
    if known.model.startswith('lc_'):
        known_model(known.model)
    _known_optimizer(known.opt)
    args.script = args.script or find_train_script()
    print(f'timm-lc train: running {args.script}', file=sys.stderr)


def _known_optimizer(name: str) -> None:
    """Refuse the underscore that timm splits at: it would use the last part and forget the rest."""
    rest = name.removeprefix('lookahead_')
    if '_' in rest:
        meant = name.removesuffix(rest) + rest.replace('_', '')
        raise ValueError(f'`--opt {name}`: timm would use {rest.split("_")[-1]!r} alone; did you mean {meant}?')


def _script(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(
            f"must be a Python file, got {text!r}, which does not exist; timm's are in a clone of "
            'https://github.com/huggingface/pytorch-image-models'
        )
    return path


def _parser() -> argparse.ArgumentParser:
    from timm_lc.commands import reproduce as commands_of

    parser = argparse.ArgumentParser(
        prog='timm-lc', description='Networks that never learn their spatial filters, in timm.'
    )
    commands = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')

    def add(name: str, handler: object, text: str, example: str) -> argparse.ArgumentParser:
        formatter = argparse.RawDescriptionHelpFormatter
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f'example:\n  {example}',
            formatter_class=formatter,
            allow_abbrev=False,
        )
        command.set_defaults(handler=handler, subparser=command)
        return command

    listing = add('list', _list, 'list the lc_ models', "timm-lc list 'lc_resnet20_*'")
    listing.add_argument('filter', nargs='?', default='lc_*', help='part of a name, or a pattern that begins with lc_')

    info = add(
        'info', _info, 'show layers and costs of a model', 'timm-lc info lc_resnet50 --model-kwargs share_weights=True'
    )
    info.add_argument('model', help='a registered name')
    info.add_argument(
        '--steps',
        action='store_true',
        help='freeze, share, recycle, prune and fold it one after the other, and print the weights and bytes of each '
        "step, for lc_resnet20_16x128 beside those of the paper's tables 1 and 3",
    )
    add_model_kwargs(info)

    run = add(
        'run',
        lambda args: None,
        "run a script, such as timm's validate.py, with the lc_ models and l1 optimizers registered",
        'timm-lc run validate.py --model lc_resnet50 --checkpoint model_best.pth.tar --data-dir /imagenet\n'
        '  torchrun --nproc-per-node 8 -m timm_lc run train.py -c train_configs/rsb_a2.yaml --model lc_resnet50\n'
        "  timm-lc run bulk_runner.py --module 1 --model-list 'lc_resnet20_16x*' timm_lc run benchmark.py",
    )
    run.add_argument('script', type=_script, metavar='SCRIPT', help='a Python file')
    run.add_argument('arguments', nargs='*', default=[], metavar='ARGS', help='its arguments')

    train = add(
        'train',
        _train,
        "run timm's stock train.py, downloaded once if need be; all other arguments are train.py's",
        'timm-lc train -c train_configs/rsb_a2.yaml --model lc_resnet50 --data-dir /imagenet',
    )
    train.add_argument(
        '--script',
        type=_script,
        metavar='PATH',
        help='train.py (default: $TIMM_SCRIPTS/train.py, ./train.py, a cached copy, or a download)',
    )
    train.usage = "%(prog)s [-h] [--script PATH] [train.py's arguments]"
    train.set_defaults(arguments=[])

    export = add(
        'export',
        run_export,
        'write a checkpoint in another form, and compare the two',
        'timm-lc export output/train/RUN --to plain --output output/plain --data-dir /imagenet',
    )
    add_export_arguments(export)

    prune = add(
        'prune',
        run_prune,
        'prune the pointwise weights of a checkpoint, or draw its accuracy over the pruned share',
        'timm-lc prune output/train/RUN --amount 0.7 --dtype float16 --output output/pruned\n'
        '  timm-lc prune output/train/RUN --amounts 0:0.95:0.05 --data-dir /imagenet --output output/pruned',
    )
    add_prune_arguments(prune)

    push = add(
        'push',
        run_push,
        'push a checkpoint to the Hugging Face Hub, with a model card',
        'timm-lc push output/train/RUN user/name --dry-run',
    )
    add_push_arguments(push)

    cifar = add(
        'cifar',
        _cifar,
        "train as in the paper's appendix C, with several seeds",
        'timm-lc cifar --model lc_resnet20_16x8 --data cifar10 --runs 4',
    )
    commands_of.add_cifar_arguments(cifar)
    add_model_kwargs(cifar)

    reproduce = add(
        'reproduce',
        _reproduce,
        "run what a figure or table of the paper is missing, and write ours beside the paper's",
        'timm-lc reproduce fig1 --data cifar10 --runs 1 --epochs 5 --values 1,4,8,32 --device cpu',
    )
    commands_of.add_reproduce_arguments(reproduce)

    report = add(
        'report',
        _report,
        "write all results of `timm-lc reproduce` as one page, ours beside the paper's",
        'timm-lc report results',
    )
    report.add_argument(
        'directory', type=Path, nargs='?', default=Path('results'), metavar='DIR', help='of results (default: results)'
    )

    demo = add('demo', _demo, 'train a frozen-random network beside its learnable twin', 'timm-lc demo --epochs 10')
    demo.add_argument('--model', default='lc_resnet20_16x8', help='an lc_ model (default: %(default)s)')
    demo.add_argument('--epochs', type=int, default=15, help='epochs of training (default: %(default)s)')
    demo.add_argument(
        '--seed', type=int, default=0, help='training seed; the filters have their own (default: %(default)s)'
    )
    demo.add_argument(
        '--data-dir', type=Path, help='ImageFolder tree with train/ and validation/ (default: handwritten digits)'
    )
    demo.add_argument(
        '--output', type=Path, default=Path('output/demo'), help='folder for checkpoints (default: %(default)s)'
    )
    return parser


if __name__ == '__main__':
    sys.exit(main())
