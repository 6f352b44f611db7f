"""What a module needs of Ansible, and no more: parameters with their defaults, and a result on standard output."""

import json
import sys


def with_defaults(spec, given):
    """The parameters as Ansible would hand them over, for the types that this project's modules use."""
    found = {}
    for name, option in spec.items():
        value = given.get(name, option.get("default"))
        if option.get("options") and isinstance(value, list):
            value = [with_defaults(option["options"], item) for item in value]
        found[name] = value
    unknown = set(given) - set(spec)
    if unknown:
        raise SystemExit(f"no such parameter: {', '.join(sorted(unknown))}")
    return found


class AnsibleModule:
    """Runs for real: check mode is not what crashes."""

    given = {}  # noqa: RUF012 (set once by run.py)
    _name = ""

    def __init__(self, argument_spec, supports_check_mode=False, **_more):
        self.params, self.check_mode = with_defaults(argument_spec, self.given), False

    def warn(self, text):
        pass

    def exit_json(self, **result):
        self._end({"failed": False, **result}, 0)

    def fail_json(self, msg, **result):
        self._end({"failed": True, "msg": msg, **result}, 1)

    def _end(self, result, code):
        sys.stdout.write(json.dumps(result, default=str) + "\n")
        sys.stdout.flush()
        sys.exit(code)
