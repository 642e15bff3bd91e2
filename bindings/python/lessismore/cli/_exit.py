"""Exit codes, for scripts. 2 is argparse's, for wrong arguments."""

DONE = 0
FAILED = 1
NOT_ENGAGED = 3
LOST = 4
INTERRUPTED = 130
