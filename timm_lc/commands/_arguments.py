"""Arguments that several commands share, and what they stand for."""

import argparse
from pathlib import Path
from typing import Any

__all__ = [
    'add_checkpoint', 'add_model_kwargs', 'add_storage', 'add_training', 'check_model', 'device_of', 'load_checkpoint',
    'refuse_to_replace', 'storage_of', 'training_of',
]  # fmt: skip


def add_model_kwargs(parser: argparse.ArgumentParser) -> None:
    """Add `--model-kwargs`, arguments of `timm.create_model`."""
    parser.add_argument(
        '--model-kwargs',
        nargs='*',
        type=_model_kwargs,
        action=_Kwargs,
        default={},
        metavar='KEY=VALUE',
        help='arguments of timm.create_model, such as expansion=4 share_weights=True',
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT, `--model` and `--model-kwargs`."""
    parser.add_argument(
        'checkpoint',
        type=Path,
        metavar='CHECKPOINT',
        help='folder of a train.py run or of save_pretrained, or a file, as of save_adapter',
    )
    parser.add_argument('--model', metavar='NAME', help='architecture, for a file that does not tell it')
    add_model_kwargs(parser)


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add how weights are stored."""
    parser.add_argument(
        '--sparse',
        action=argparse.BooleanOptionalAction,
        help='store pruned weights as a bit mask and values (default: as CHECKPOINT does)',
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        help='floating type of the stored matrices (default: as in CHECKPOINT; of other forms float32)',
    )


def add_training(parser: argparse.ArgumentParser, runs: int) -> None:
    """Add what `cifar` and `reproduce` have in common."""
    parser.add_argument(
        '--data',
        default='cifar10',
        help='cifar10, cifar100, svhn, fashion_mnist, digits, or a folder with train/ and validation/ '
        '(default: %(default)s)',
    )
    parser.add_argument('--epochs', type=int, default=75, help='epochs of training (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=runs, help='training seeds (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='the first of them; filters have their own (default: %(default)s)'
    )
    parser.add_argument('--jobs', type=int, default=1, help='runs at once, on one device (default: %(default)s)')
    parser.add_argument('--limit', type=int, help='images of each split (default: all)')
    parser.add_argument('--batch-size', type=int, default=256, help='(default: %(default)s)')
    parser.add_argument('--lr', type=float, default=1e-2, help='initial learning rate (default: %(default)s)')
    parser.add_argument('--device', help='cpu, cuda, ... (default: cuda if there is one)')
    for name, text in (
        ('amp', 'bfloat16 autocast (default: on a GPU)'),
        ('channels-last', 'channels_last memory (default: on)'),
        ('compile', 'torch.compile with CUDA graphs (default: on a GPU)'),
    ):
        parser.add_argument(f'--{name}', action=argparse.BooleanOptionalAction, help=text)


def check_model(name: str) -> None:
    """Refuse a name that is not registered, suggesting the nearest."""
    import difflib
    import re

    import timm

    import timm_lc  # noqa: F401  # registers the names

    if not timm.is_model(name):
        size = re.fullmatch(r'lc_resnet(\d+)_(\d+)x(\d+)', name)
        if size:
            sizes = 'depth={} width={} expansion={}'.format(*size.groups())
            raise ValueError(
                f'no model {name!r}: LCResNets of other sizes are lc_resnet_cifar, `--model-kwargs {sizes}`'
            )
        near = difflib.get_close_matches(name, timm.list_models('lc_*'), n=3, cutoff=0.6)
        hint = f'; did you mean {" or ".join(near)}?' if near else '; `timm-lc list` shows all'
        raise ValueError(f'unknown model {name!r}{hint}')


def load_checkpoint(args: argparse.Namespace) -> Any:
    """Return the network of CHECKPOINT, as `--model` and `--model-kwargs` say."""
    if args.model:
        check_model(args.model)
    from timm_lc.checkpoints.adapters import is_adapter_file, load_adapted
    from timm_lc.checkpoints.checkpoint import load_model

    if not args.model and is_adapter_file(args.checkpoint):
        return load_adapted(args.checkpoint, **args.model_kwargs)
    return load_model(args.checkpoint, args.model, **args.model_kwargs)


def refuse_to_replace(checkpoint: Path, weights: Path) -> None:
    """Refuse to write `weights` where `checkpoint` has its own, or where they would be taken for the checkpoint."""
    from timm_lc.checkpoints.checkpoint import WEIGHTS, weights_file

    own = weights_file(checkpoint)
    if own.resolve() == weights.resolve():
        raise ValueError('`--output` is the checkpoint itself, which would be replaced: give another')
    if weights.name == WEIGHTS and own.parent.resolve() == weights.parent.resolve():
        raise ValueError(f'`--output` is the folder of {own}, in whose place {WEIGHTS} would be read: give another')


def storage_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return `sparse` and `dtype` of `save_pretrained`: what the arguments say, else what CHECKPOINT is."""
    import sys

    import torch

    from timm_lc.checkpoints.train_run import read_form

    sparse, dtype = read_form(args.checkpoint)
    kept = ['sparse'] * (sparse and args.sparse is None)
    kept += [str(dtype).removeprefix('torch.')] * (dtype is not None and args.dtype is None)
    if kept:
        print(f'stored as in {args.checkpoint}: {", ".join(kept)}', file=sys.stderr)
    chosen = dtype if args.dtype is None else getattr(torch, args.dtype)
    return {'sparse': sparse if args.sparse is None else args.sparse, 'dtype': chosen}


def device_of(args: argparse.Namespace) -> Any:
    """Return the device that `--device` names, by default a GPU if there is one, after trying it."""
    import torch

    try:
        device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'`--device {args.device}`: {str(error).splitlines()[0]}') from None
    return device


def training_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe, device and speed that the arguments ask for."""
    from timm_lc.training.recipe import Recipe, Speed

    device = device_of(args)
    best = Speed.best_for(device)
    chosen = {name: getattr(args, name) for name in ('amp', 'channels_last', 'compile')}
    speed = Speed(**{name: getattr(best, name) if value is None else value for name, value in chosen.items()})
    recipe = Recipe(args.epochs, args.batch_size, args.lr, l1=getattr(args, 'l1', 0.0))
    return {'recipe': recipe, 'device': device, 'speed': speed}


def _model_kwargs(text: str) -> tuple[str, object]:
    """Parse one key=value; values are Python literals, else text."""
    import ast

    key, separator, value = text.partition('=')
    if not (separator and key.isidentifier()):
        raise argparse.ArgumentTypeError(f'must be key=value, got {text!r}')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class _Kwargs(argparse.Action):
    def __call__(self, parser: object, namespace: object, values: Any, option_string: object = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **dict(values)})
