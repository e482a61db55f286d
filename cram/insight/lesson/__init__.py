"""The course: lessons and failure labs in configs/lessons, run, compared with what they say, and their exercises judged."""
