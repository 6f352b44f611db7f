"""Receipts: what each host was left as, verified on the host by the modules that brought it about."""

from provision.drift.bundle import verifier_text
from provision.drift.receipts import EFFECTS, Busy, Finding, HostReceipts, StageReceipt
from provision.drift.survey import verify

__all__ = ["EFFECTS", "Busy", "Finding", "HostReceipts", "StageReceipt", "verifier_text", "verify"]
