"""`timm-lc info`: layers and costs of a model."""

import argparse

from timm_lc.commands._arguments import add_model_kwargs, check_model

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'show layers and costs of a model'
EXAMPLE = 'timm-lc info lc_resnet50 --model-kwargs share_weights=True'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc info`."""
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
