"""The commands `timm-lc export` and `push`: their arguments, what they do, and what other commands share with them."""

import argparse
import sys
from pathlib import Path
from typing import Any

__all__ = [
    'add_checkpoint', 'add_export_arguments', 'add_model_kwargs', 'add_push_arguments', 'known_model',
    'load_checkpoint', 'refuse_to_replace', 'run_export', 'run_push', 'storage_dtype',
]  # fmt: skip


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc export`."""
    parser.usage = '%(prog)s CHECKPOINT --to FORM --output DIR [options]'
    add_checkpoint(parser)
    _add_storage(parser)
    parser.add_argument(
        '--to',
        required=True,
        choices=('plain', 'folded', 'onnx', 'safetensors'),
        help='plain: for stock timm, or a torch.export program and ONNX where it lacks the architecture; folded: a '
        'plain network for timm with this package; onnx; safetensors: as it is, or as --sparse and --dtype say',
    )
    parser.add_argument('--output', type=Path, required=True, metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--data-dir', type=Path, help='ImageFolder tree whose validation images are compared, besides random ones'
    )
    parser.add_argument('--limit', type=int, metavar='N', help='images of it to take (default: all)')
    parser.add_argument(
        '--tolerance',
        type=float,
        help='largest difference of logits, as a share of the largest logit (default: 0 for safetensors, 0.01 in '
        'float16 and 0.1 in bfloat16, else 1e-4)',
    )


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc push`."""
    parser.usage = '%(prog)s CHECKPOINT REPO_ID [options]'
    add_checkpoint(parser)
    _add_storage(parser)
    parser.add_argument('repo_id', metavar='REPO_ID', help='user/name')
    parser.add_argument(
        '--private', action='store_true', help='make a new repository private; refuse one that is public'
    )
    parser.add_argument('--revision', metavar='BRANCH', help='branch to push to, made if need be')
    parser.add_argument('--create-pr', action='store_true', help='open a pull request')
    parser.add_argument(
        '--plain', action='store_true', help='add the stock form, which needs no timm_lc, in the folder plain/'
    )
    parser.add_argument('--plain-repo', metavar='REPO_ID', help='repository for the stock form, in place of plain/')
    parser.add_argument('--dry-run', action='store_true', help='write the folder and upload nothing')
    parser.add_argument(
        '--output',
        type=Path,
        default=Path('output/push'),
        help='of a dry run: files go to OUTPUT/user/name (%(default)s)',
    )
    parser.add_argument('--dataset', metavar='ID', help='dataset on the Hub that it was trained on')
    parser.add_argument('--license', default='apache-2.0', help="a licence by the Hub's names (%(default)s)")
    parser.add_argument('--token', help='of the Hub (default: that of `hf auth login`)')
    parser.add_argument('--message', default='Add model', help='of the commit (%(default)s)')


def run_export(args: argparse.Namespace) -> None:
    """Write a checkpoint in another form, and print how the two compare."""
    from timm_lc.checkpoints.checkpoint import WEIGHTS
    from timm_lc.checkpoints.exporting import export
    from timm_lc.checkpoints.hub import read_facts

    refuse_to_replace(args.checkpoint, args.output / WEIGHTS)
    done = export(
        load_checkpoint(args),
        args.to,
        args.output,
        sparse=args.sparse,
        dtype=storage_dtype(args),
        data_dir=args.data_dir,
        limit=args.limit,
        tolerance=args.tolerance,
        facts=read_facts(args.checkpoint),
    )
    lines = [f'{path.stat().st_size:>14,} bytes  {path}' for path in done.files]
    lines += [
        f'{found.file} on {found.number:,} images, {found.images}: {found.agreement:.2%} of predictions the same, '
        f'logits differ by at most {found.difference:.2g}, {found.relative:.2g} of the largest'
        for found in done.comparisons
    ]
    print('\n'.join(lines + done.notes))


def run_push(args: argparse.Namespace) -> None:
    """Push a checkpoint, or write what would be pushed, and print the address or the files."""
    from timm_lc.checkpoints.hub import push_to_hub, read_card, read_facts, write_repositories

    model = load_checkpoint(args)
    what = {
        'plain': args.plain,
        'plain_repo': args.plain_repo,
        'facts': read_facts(args.checkpoint, dataset=args.dataset, license=args.license),
        'card': read_card(args.checkpoint),
        'sparse': args.sparse,
        'dtype': storage_dtype(args),
    }
    if args.dry_run:
        written = write_repositories(model, args.output, args.repo_id, **what)
        lines = [f'{path.stat().st_size:>14,} bytes  {path}' for files in written.values() for path in files]
        lines.append('dry run: nothing was uploaded')
    else:
        where = {'private': args.private or None, 'revision': args.revision, 'create_pr': args.create_pr}
        lines = push_to_hub(model, args.repo_id, **where, **what, token=args.token, commit_message=args.message)
    print('\n'.join(lines))
    facts = what['facts']
    if facts.metrics and not facts.dataset_id:
        print('the card names no data set: `--dataset USER/NAME`, its id on the Hub, would', file=sys.stderr)


def known_model(name: str) -> None:
    """Refuse a name that is not registered, suggesting the nearest."""
    import difflib

    import timm

    import timm_lc  # noqa: F401  # registers the names

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models('lc_*'), n=3, cutoff=0.6)
        hint = f'; did you mean {" or ".join(near)}?' if near else '; `timm-lc list` shows all'
        raise ValueError(f'unknown model {name!r}{hint}')


def add_model_kwargs(parser: argparse.ArgumentParser) -> None:
    """Add `--model-kwargs`, arguments of `timm.create_model`."""
    parser.add_argument(
        '--model-kwargs', nargs='*', type=_model_kwargs, action=_Kwargs, default={}, metavar='KEY=VALUE'
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT, `--model` and `--model-kwargs`."""
    parser.add_argument(
        'checkpoint', type=Path, metavar='CHECKPOINT', help='folder of a train.py run or of save_pretrained, or a file'
    )
    parser.add_argument('--model', metavar='NAME', help='architecture, for a file that does not tell it')
    add_model_kwargs(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--sparse', action='store_true', help='store pruned weights as a bit mask and values')
    parser.add_argument('--dtype', choices=('bfloat16', 'float16'), help='floating type of the stored matrices')


def load_checkpoint(args: argparse.Namespace) -> Any:
    """Return the network of CHECKPOINT, as `--model` and `--model-kwargs` say."""
    if args.model:
        known_model(args.model)
    from timm_lc.checkpoints.checkpoint import load_model

    return load_model(args.checkpoint, args.model, **args.model_kwargs)


def refuse_to_replace(checkpoint: Path, weights: Path) -> None:
    """Refuse to write `weights` where `checkpoint` has its own."""
    from timm_lc.checkpoints.checkpoint import weights_file

    if weights_file(checkpoint).resolve() == weights.resolve():
        raise ValueError('`--output` is the checkpoint itself, which would be replaced: give another')


def storage_dtype(args: argparse.Namespace) -> Any:
    """Return the floating type that `--dtype` names, or None."""
    import torch

    return args.dtype and getattr(torch, args.dtype)


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
