"""The exit codes of the command. Ansible's own never leak out."""

OK = 0
FAILED = 1
PENDING = 2
UNREACHABLE = 3
USAGE = 64
INVALID = 65
LOCKED = 75
INTERRUPTED = 130
