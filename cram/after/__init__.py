"""What is done with a finished model: generate, export, quantize, score in other tools."""
