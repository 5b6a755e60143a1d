"""What a dead owner left: its unfinished journal, its private folders; and readers, who meet the same."""
