"""What users read and rely on: README, pages, examples, exports, errors, programs written for older versions."""
