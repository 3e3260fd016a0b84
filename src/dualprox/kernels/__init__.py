"""Fused steps: one pass over memory per step instead of one per formula."""
