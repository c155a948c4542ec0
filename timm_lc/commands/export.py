"""`timm-lc export`: a checkpoint in another form."""

import argparse
from pathlib import Path

from timm_lc.commands._arguments import add_checkpoint, add_storage, load_checkpoint, refuse_to_replace, storage_of

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'write a checkpoint in another form, and compare the two'
EXAMPLE = 'timm-lc export output/train/RUN --to plain --output output/plain --data-dir /imagenet'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc export`."""
    parser.usage = '%(prog)s CHECKPOINT --to FORM --output DIR [options]'
    add_checkpoint(parser)
    add_storage(parser)
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


def run(args: argparse.Namespace) -> None:
    """Write a checkpoint in another form, and print how the two compare."""
    import torch

    from timm_lc.checkpoints.checkpoint import WEIGHTS
    from timm_lc.checkpoints.exporting import export
    from timm_lc.checkpoints.train_run import read_facts

    if args.output.is_file():
        raise ValueError(f'`--output` must be a folder, got the file {args.output}')
    refuse_to_replace(args.checkpoint, args.output / WEIGHTS)
    whole = {'sparse': bool(args.sparse), 'dtype': args.dtype and getattr(torch, args.dtype)}
    storage = storage_of(args) if args.to == 'safetensors' else whole
    done = export(
        load_checkpoint(args),
        args.to,
        args.output,
        **storage,
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
