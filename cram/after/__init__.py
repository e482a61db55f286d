"""After the day: generate, fill in, quantize, export, and be scored by the tools of others."""
