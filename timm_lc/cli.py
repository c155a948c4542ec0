"""The command `timm-lc`: one file of `commands/` for each subcommand."""

import argparse
import importlib
import sys
from collections.abc import Sequence

__all__ = ['main']

COMMANDS = ('demo', 'list', 'info', 'train', 'run', 'cifar', 'reproduce', 'report', 'prune', 'export', 'push')


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
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        args.subparser.error(str(error))
    except KeyboardInterrupt:
        return 130
    if script is not None:  # what a script raises is its own affair
        script()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='timm-lc', description='Networks that never learn their spatial filters, in timm.'
    )
    subparsers = parser.add_subparsers(title='commands', required=True, metavar='COMMAND')
    for name in COMMANDS:
        module = importlib.import_module(f'timm_lc.commands.{name}')
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
