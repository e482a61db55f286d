"""What the trained model is worth: held-out loss, baselines, minimal pairs, samples."""
