"""`run.py MODULE`: imports one of the project's modules, says `ready`, waits for a line of input, runs it with params.json."""

import importlib
import json
import sys

HERE = "/run/crash"
sys.path.insert(0, HERE)
from ansible.module_utils import basic  # noqa: E402

basic.AnsibleModule._name = sys.argv[1]
with open(f"{HERE}/params.json", encoding="utf-8") as file:
    basic.AnsibleModule.given = json.load(file)
module = importlib.import_module(f"library.{sys.argv[1]}")
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
module.main()
