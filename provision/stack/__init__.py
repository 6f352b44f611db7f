"""`stack.lock.yml`: the versions of a deployment as one decision."""

from provision.stack.lock import DEFAULT_LOCK, Stack, load_stack, vllm_arguments

__all__ = ["DEFAULT_LOCK", "Stack", "load_stack", "vllm_arguments"]
