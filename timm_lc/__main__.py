"""`python -m timm_lc` is the command `timm-lc`."""

import sys

from timm_lc.cli import main

sys.exit(main())
