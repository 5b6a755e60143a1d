"""One file for each promise, or for each circumstance in which the promises must hold."""
