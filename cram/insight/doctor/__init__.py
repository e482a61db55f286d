"""Whether this machine is ready, and what it can do."""
