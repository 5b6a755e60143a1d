"""What users call: `Transaction`, the one-output functions, and the questions one can ask a folder."""
