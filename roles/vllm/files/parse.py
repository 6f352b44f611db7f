"""Runs in the serving environment: has vLLM's own command line read a configuration, and starts nothing.

Prints one JSON object on its last line: `error` (null where vLLM accepts it) and `options`, the names that it knows.
"""

import json
import os
import sys

from vllm import envs
from vllm.entrypoints.cli import main as command
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser


def tell(error, options=()):
    sys.stdout.write("\n" + json.dumps({"error": error, "options": sorted(options)}) + "\n")
    sys.stdout.flush()
    os._exit(0)


def refuse(parser, message):
    """In place of argparse's own, which prints the usage and ends with 2."""
    options = {option for option in parser._option_string_actions if option.startswith("--")}
    if parser._subparsers is not None:
        options.update(*(p._option_string_actions for p in parser._subparsers._group_actions[0].choices.values()))
    tell(message, options)


FlexibleArgumentParser.error = refuse
ServeSubcommand.cmd = staticmethod(lambda _arguments: tell(None))
unknown = [name for name in os.environ if name.startswith("VLLM_") and name not in envs.environment_variables]
if unknown:
    tell(f"unknown environment variable: {unknown[0]}", envs.environment_variables)
sys.argv = ["vllm", "serve", "--config", sys.argv[1]]
try:
    command.main()
except (ValueError, TypeError) as error:
    tell(str(error))
