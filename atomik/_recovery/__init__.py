"""What a dead owner left: its unfinished journal, its private folders; and readers, which find the same."""
