"""Triton code: importing any module in here needs triton, which is optional."""
