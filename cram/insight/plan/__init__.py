"""What a budget will buy, before it is spent."""
