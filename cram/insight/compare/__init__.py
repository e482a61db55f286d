"""Runs side by side, and a run beside what was expected of it."""
