"""Receipts: what each host was left as, verified on the host by the modules that brought it about."""

from provision.drift.bundle import verifier_text
from provision.drift.receipts import EFFECTS, Busy, Finding, HostReceipts, Mended, StageReceipt
from provision.drift.survey import mend, verify

__all__ = ["EFFECTS", "Busy", "Finding", "HostReceipts", "Mended", "StageReceipt", "mend", "verifier_text", "verify"]
