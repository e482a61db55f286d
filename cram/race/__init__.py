"""A referee for races: the same text, held-out bytes, seconds and device for everybody, scored by one measure."""
