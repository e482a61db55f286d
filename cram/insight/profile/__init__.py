"""Where the time of one training step goes: milliseconds, FLOPs, bytes and memory by module, and what limits each."""
