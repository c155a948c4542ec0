"""The command `timm-lc`: one file of `commands/` for each subcommand."""

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ['main']

COMMANDS = (
    'demo',
    'list',
    'info',
    'recipes',
    'train',
    'run',
    'cifar',
    'reproduce',
    'report',
    'bench',
    'adapt-bench',
    'prune',
    'export',
    'push',
)
# How timm's RuntimeError about an argument of `create_model` begins; others are faults, and keep their traceback
_FROM_TIMM = 'No pretrained weights exist'


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
        script = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        args.subparser.exit(2, f'{args.subparser.prog}: error: {_said(error)}\n')
    except RuntimeError as error:
        if not str(error).startswith(_FROM_TIMM):
            raise
        args.subparser.exit(2, f'{args.subparser.prog}: error: {error}\n')
    except KeyboardInterrupt:
        return 130
    if script is not None:  # what a script raises is its own affair
        script()
    return 0


def _said(error: Exception) -> str:
    """Return what an error says; timm raises some without a word."""
    return str(error) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read more, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n`{self.prog} --help` shows its arguments\n')


class _Version(argparse.Action):
    """Prints the versions that a bug report needs; none is looked up before it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> NoReturn:
        import timm
        import torch

        import timm_lc

        others = f'timm {timm.__version__}, torch {torch.__version__}, Python {platform.python_version()}'
        print(f'timm-lc {timm_lc.__version__} ({others})')
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog='timm-lc', description='Networks that never learn their spatial filters, in timm.')
    parser.add_argument('--version', action=_Version, nargs=0, help='print the versions and exit')
    subparsers = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    for name in COMMANDS:
        module = importlib.import_module(f'timm_lc.commands.{name.replace("-", "_")}')
        command = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f'example:\n  {module.EXAMPLE}',
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(run=module.run, subparser=command)
        module.add_arguments(command)
    return parser


if __name__ == '__main__':
    sys.exit(main())
