"""`timm-lc prune`: zeros in the pointwise weights of a checkpoint (section 4.3, figure 19)."""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from timm_lc.commands._arguments import add_checkpoint, load_checkpoint, refuse_to_replace

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'prune the pointwise weights of a checkpoint, or draw its accuracy over the pruned share'
EXAMPLE = (
    'timm-lc prune output/train/RUN --amount 0.7 --dtype float16 --output output/pruned\n'
    '  timm-lc prune output/train/RUN --amounts 0:0.95:0.05 --data-dir /imagenet --output output/pruned'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc prune`."""
    parser.usage = '%(prog)s CHECKPOINT [--amount SHARE] [--amounts START:STOP:STEP] --output FILE_OR_DIR [options]'
    add_checkpoint(parser)
    parser.add_argument(
        '--amount', type=float, metavar='SHARE', help='share of all pointwise weights to prune, in [0, 1)'
    )
    parser.add_argument(
        '--amounts',
        type=_amounts,
        metavar='START:STOP:STEP',
        help='shares, both ends included, at each of which the accuracy is measured and drawn; needs --data-dir',
    )
    parser.add_argument(
        '--output',
        type=Path,
        required=True,
        metavar='FILE_OR_DIR',
        help='folder for the pruned network, or a .safetensors file for its weights alone; accuracies go beside them',
    )
    parser.add_argument(
        '--dense', action='store_true', help='store pruned weights as zeros, not as a bit mask and values'
    )
    parser.add_argument(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='floating type of the stored matrices (%(default)s)',
    )
    parser.add_argument('--data-dir', type=Path, help='folder of classes, or ImageFolder tree with validation/')
    parser.add_argument('--limit', type=int, metavar='N', help='images of it to take (default: all)')
    parser.add_argument('--batch-size', type=int, default=256, metavar='N', help='images in a batch (%(default)s)')


def run(args: argparse.Namespace) -> None:
    """Prune a checkpoint and save it, measure it pruned by several shares, or both; print what came of it."""
    import torch

    from timm_lc.checkpoints.train_run import read_facts
    from timm_lc.transforms.prune import check_amount

    if args.amount is None and args.amounts is None:
        raise ValueError('give `--amount`, the share to prune, `--amounts`, shares to compare, or both')
    if args.data_dir is None and (args.amounts or args.limit is not None):
        raise ValueError('`--amounts` and `--limit` need `--data-dir`, the images to measure the accuracy on')
    if args.amount is not None:
        check_amount(args.amount)
    elif args.dense or args.dtype != args.subparser.get_default('dtype'):
        raise ValueError('`--dense` and `--dtype` are of the pruned network that `--amount` saves: give it too')
    weights = _pruned_weights(args.output)
    refuse_to_replace(args.checkpoint, weights)
    model = load_checkpoint(args)
    if args.data_dir is not None:
        from timm_lc.analysis.evaluation import folder_loader

        loader = folder_loader(model, args.data_dir, args.batch_size, args.limit)
        _measure(model, loader, args.amount, args.amounts or [], weights)
    if args.amount is not None:
        facts = dataclasses.replace(read_facts(args.checkpoint), metrics={})  # measured before it was pruned
        dtype = getattr(torch, args.dtype)
        _save_pruned(model, args.amount, weights, facts, dense=args.dense, dtype=dtype)


def _measure(model: Any, loader: Any, amount: float | None, amounts: list[float], weights: Path) -> None:
    """Print the accuracy at each share, and write the table and the figure of a sweep."""
    import torch

    from timm_lc.checkpoints.checkpoint import WEIGHTS
    from timm_lc.naming import architecture_of
    from timm_lc.paper.plots import require_plots
    from timm_lc.paper.sweep import sweep, write_sweep

    if amounts:
        require_plots()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    images = len(loader.dataset)
    points = sweep(model, sorted({*(amounts or [0.0]), *([] if amount is None else [amount])}), loader, device)
    print(f'{"pruned":>8}{"accuracy":>11}{"non-zero":>14}   on {images:,} images')
    for point in points:
        print(f'{point.amount:>8.2%}{point.accuracy:>10.2f}%{point.nonzero:>14,}')
    if amounts:
        stem = weights.with_name('pruning') if weights.name == WEIGHTS else weights.with_suffix('')
        about = {'model': architecture_of(model), 'images': images}
        print('\n'.join(map(str, write_sweep(points, stem, **about))))


def _save_pruned(model: Any, amount: float, weights: Path, facts: Any, *, dense: bool, dtype: Any) -> None:
    """Prune `model` in place, print what is left of each layer, and save it."""
    from timm_lc.analysis.counting import count_parameters
    from timm_lc.naming import has_lc_name
    from timm_lc.transforms.prune import pointwise_sparsity, prune_pointwise

    with tempfile.TemporaryDirectory() as unpruned:
        before = _write(model, Path(unpruned, weights.name)).stat().st_size
    layers = pointwise_sparsity(prune_pointwise(model, amount))
    size, zeros = sum(layer.size for layer in layers), sum(layer.zeros for layer in layers)
    width = max(len(layer.name) for layer in layers) + 2
    print(f'{"layer":<{width}}{"weights":>12}{"zeros":>12}{"share":>9}')
    for name, *values in [*layers, ('all', size, zeros, zeros / size)]:
        print('{:<{}}{:>12,}{:>12,}{:>9.2%}'.format(name, width, *values))
    counts = count_parameters(model)
    print(f'\nparameters: {counts.learnable:,} learnable, {counts.total:,} total, {counts.nonzero:,} non-zero')
    sparse = not dense and has_lc_name(model)
    after = _write(model, weights, sparse=sparse, dtype=dtype, facts=facts).stat().st_size
    form = 'sparse' if sparse else 'dense' if dense else 'dense, as stock networks load no other form'
    print(f'bytes: {before:,} before, {after:,} after ({form}, {str(dtype).removeprefix("torch.")}): {weights}')


def _pruned_weights(output: Path) -> Path:
    """Return the file of weights that `--output` stands for."""
    from timm_lc.checkpoints.checkpoint import WEIGHTS

    if output.suffix == '.safetensors' and not output.is_dir():
        return output
    if output.is_file() or output.suffix in ('.pth', '.pt', '.tar', '.bin', '.ckpt', '.onnx'):
        raise ValueError(f'`--output` must be a folder or a .safetensors file, got {str(output)!r}')
    return output / WEIGHTS


def _write(model: Any, weights: Path, **storage: Any) -> Path:
    """Save `model` to the folder of `weights`, or `weights` alone if it has a name that timm does not look for."""
    from timm_lc.checkpoints.checkpoint import WEIGHTS, save_pretrained

    if weights.name == WEIGHTS:
        return save_pretrained(model, weights.parent, **storage) / WEIGHTS
    weights.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=weights.parent, prefix='.saving-') as staged:
        return (save_pretrained(model, staged, card='', **storage) / WEIGHTS).replace(weights)


def _amounts(text: str) -> list[float]:
    """Parse START:STOP:STEP; both ends are included."""
    try:
        start, stop, step = map(float, text.split(':'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'must be START:STOP:STEP, as 0:0.95:0.05, got {text!r}') from None
    if not (0 <= start <= stop < 1 and step > 0):
        raise argparse.ArgumentTypeError(f'must rise within [0, 1) by a positive step, got {text!r}')
    return [round(start + index * step, 10) for index in range(int((stop - start) / step + 1e-9) + 1)]
