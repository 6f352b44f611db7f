"""Weights on a fleet: who hands them on to whom, how far each host is, and what can be done about them."""
