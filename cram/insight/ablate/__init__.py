"""Ablations: one question, runs under equal budgets that differ in one thing, and an answer with its uncertainty."""
