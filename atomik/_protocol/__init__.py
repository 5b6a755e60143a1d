"""What a commit and a recovery share: steps, how one is published and undone, journal, private folders, locks."""
