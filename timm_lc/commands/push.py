"""`timm-lc push`: a checkpoint to the Hugging Face Hub."""

import argparse
import sys
from pathlib import Path

from timm_lc.commands._arguments import add_checkpoint, add_storage, load_checkpoint, refuse_to_replace, storage_of

__all__ = ['EXAMPLE', 'HELP', 'add_arguments', 'run']

HELP = 'push a checkpoint to the Hugging Face Hub, with a model card'
DRY_RUN = Path('output/push')
EXAMPLE = 'timm-lc push output/train/RUN user/name --dry-run'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `timm-lc push`."""
    parser.usage = '%(prog)s CHECKPOINT REPO_ID [options]'
    add_checkpoint(parser)
    add_storage(parser)
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
        help=f'of a dry run: files go to OUTPUT/user/name (default: {DRY_RUN})',
    )
    parser.add_argument('--dataset', metavar='ID', help='dataset on the Hub that it was trained on')
    parser.add_argument('--license', metavar='ID', help="a licence by the Hub's names (default: none is claimed)")
    parser.add_argument('--token', help='of the Hub (default: that of `hf auth login`)')
    parser.add_argument('--message', default='Add model', help='of the commit (%(default)s)')


def run(args: argparse.Namespace) -> None:
    """Push a checkpoint, or write what would be pushed, and print the address or the files."""
    from timm_lc.checkpoints.hub import push_to_hub, read_card, write_repositories
    from timm_lc.checkpoints.train_run import read_facts

    if args.output is not None and not args.dry_run:
        raise ValueError(f'`--output` is of `--dry-run`: a push writes no folder, got {args.output}')
    if args.dry_run:
        _refuse_to_replace(args)
    model = load_checkpoint(args)
    what = {
        'plain': args.plain,
        'plain_repo': args.plain_repo,
        'facts': read_facts(args.checkpoint, dataset=args.dataset, license=args.license),
        'card': read_card(args.checkpoint),
        **storage_of(args),
    }
    if args.dry_run:
        written = write_repositories(model, args.output or DRY_RUN, args.repo_id, **what)
        lines = [f'{path.stat().st_size:>14,} bytes  {path}' for files in written.values() for path in files]
        lines.append('dry run: nothing was uploaded')
    else:
        where = {'private': args.private or None, 'revision': args.revision, 'create_pr': args.create_pr}
        lines = push_to_hub(model, args.repo_id, **where, **what, token=args.token, commit_message=args.message)
    print('\n'.join(lines))
    facts = what['facts']
    if facts.metrics and not facts.dataset_id:
        print('the card names no data set: `--dataset USER/NAME`, its id on the Hub, would', file=sys.stderr)
    if not facts.license:
        print('the card claims no licence: `--license ID`, such as apache-2.0 or cc-by-4.0, would', file=sys.stderr)


def _refuse_to_replace(args: argparse.Namespace) -> None:
    """Refuse to write a dry run's repositories over the checkpoint."""
    from timm_lc.checkpoints.checkpoint import WEIGHTS
    from timm_lc.checkpoints.hub import PLAIN

    output = args.output or DRY_RUN
    for folder in (args.repo_id, Path(args.repo_id, PLAIN), args.plain_repo or args.repo_id):
        refuse_to_replace(args.checkpoint, output / folder / WEIGHTS)
