"""A contest under one budget: cards of runs, checked and ranked."""
