"""What follows the day: the model generates, shrinks, and leaves for other tools."""
