"""Take bare GPU servers to a served model, and keep them there."""

__version__ = "0.1.0"
