"""What is done with a finished model: text from it, fewer bits for it, and other tools' formats."""
