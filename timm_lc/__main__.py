"""`python -m timm_lc` is the command `timm-lc`."""

import sys

from .cli import main

sys.exit(main())
