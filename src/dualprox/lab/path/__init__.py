"""A sweep over strengths: how accuracy falls as the network gets smaller."""
