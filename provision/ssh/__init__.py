"""Reaching hosts before Ansible does: verified host keys, login, sudo, Python, and a plain word for what is wrong."""

from provision.ssh.call import Answer, Call, call

__all__ = ["Answer", "Call", "call"]
