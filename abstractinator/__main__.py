"""python -m abstractinator: the command line."""

import sys

from abstractinator.cli import main

sys.exit(main())
