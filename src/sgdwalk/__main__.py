"""``python -m sgdwalk``."""

import sys

from sgdwalk.cli import main

sys.exit(main())
