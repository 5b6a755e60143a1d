"""Crashes at random moments, with many processes at work: the filesystem shut down under them, and kill -9."""
