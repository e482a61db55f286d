"""A small grid of sizes and budgets, the law fitted to it, and the size it recommends."""
