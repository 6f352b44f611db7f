"""Start a simulated program: `run.py PROGRAM VERSION ARGUMENT...`; what is imported need not be compiled each time."""

import sys

sys.exit(__import__(sys.argv[1]).main(sys.argv[2], sys.argv[3:]))
