"""Outputs on their way in: one module for each method of `Transaction`, and what they share."""
