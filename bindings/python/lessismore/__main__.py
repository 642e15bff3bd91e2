"""`python -m lessismore` is the command `lessismore`."""

import sys

from .cli import main

sys.exit(main())
