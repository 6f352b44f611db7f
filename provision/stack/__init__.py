"""`stack.lock.yml`: the versions of a deployment as one decision."""

from provision.stack.lock import DEFAULT_LOCK, Lock, Stack, load_stack, lock_path, read_lock, vllm_arguments

__all__ = ["DEFAULT_LOCK", "Lock", "Stack", "load_stack", "lock_path", "read_lock", "vllm_arguments"]
