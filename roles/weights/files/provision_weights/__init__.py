"""Weights on one host: fetched from a source or from its neighbours, verified, served on to the next.

Runs on the host, as `python -m provision_weights COMMAND`; standard library only, Python 3.9 and later, but for the
client libraries of the sources.
"""
