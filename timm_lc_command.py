"""Where the command `timm-lc` begins: outside the package, whose import takes seconds, to end quietly at Ctrl-C."""

import sys


def main() -> int:
    """Run `timm_lc.cli.main`; return the exit status."""
    try:
        from timm_lc.cli import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == '__main__':
    sys.exit(main())
