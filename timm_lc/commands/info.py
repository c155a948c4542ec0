"""`timm-lc info`: layers and costs of a model."""

import argparse
from typing import Any

from timm_lc.commands._arguments import add_model_kwargs, check_model

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'show layers and costs of a model'
EXAMPLE = 'timm-lc info lc_resnet50 --model-kwargs share_weights=True'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc info`."""
    parser.usage = '%(prog)s MODEL [--steps] [--model-kwargs KEY=VALUE ...]'
    parser.add_argument('model', help='a registered name')
    parser.add_argument(
        '--steps',
        action='store_true',
        help='freeze, share, recycle, prune and fold it one after the other, and print the weights and bytes of each '
        "step, for lc_resnet20_16x128 beside those of the paper's tables 1 and 3",
    )
    add_model_kwargs(parser)


def run(args: argparse.Namespace) -> None:
    """Print the layers and totals of a model."""
    check_model(args.model)
    if args.steps:
        from timm_lc.paper.sizes import steps_page

        print(steps_page(args.model, **args.model_kwargs), end='')
        return
    import timm
    import torch

    from timm_lc.analysis.conditioning import conditioning_page
    from timm_lc.analysis.description import describe
    from timm_lc.inputs import input_size

    with torch.device('meta'):  # allocates no weights
        model = timm.create_model(args.model, **args.model_kwargs).eval()
    print(describe(model))
    size, multiply_adds = 'x'.join(map(str, input_size(model))), f'{_multiply_adds(model):,}'
    print(f'checkpoint: {_checkpoint_bytes(model):,} bytes; multiply-adds for one {size} image: {multiply_adds}')
    if page := conditioning_page(model):
        print(f'\n{page}')


def _multiply_adds(model: Any) -> int:
    """Return the multiply-adds of one image's forward pass of a model on the meta device."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from timm_lc.inputs import input_size

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *input_size(model), device='meta'))
    return counter.get_total_flops() // 2


def _checkpoint_bytes(model: Any) -> int:
    """Return the size of the `model.safetensors` of a model on the meta device."""
    import torch
    from safetensors.torch import save

    from timm_lc.checkpoints.checkpoint import file_metadata

    empty = {key: torch.empty_like(tensor, device='cpu') for key, tensor in model.state_dict().items()}
    return len(save(empty, file_metadata(empty, model)))
