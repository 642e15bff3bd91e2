"""Reads the compiler's resource report of the kernels (nvcc -Xptxas -v) and fails on a regression: a kernel that
spills, or that uses more registers than its occupancy allows. Prints registers, static shared memory and the
blocks that fit a multiprocessor by registers, per target."""

import re
import sys

THREADS = {"attend": 128, "select": 512, "probe": 256, "tally": 128}
