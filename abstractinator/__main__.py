"""Entry point of `python -m abstractinator`: the command line."""

import sys

from abstractinator.cli.main import main

sys.exit(main())
