"""Frozen networks: the plan format, the executor's op and ``freeze``."""
