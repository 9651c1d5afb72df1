"""Inference engines behind two protocols; the only rooms that touch one."""
