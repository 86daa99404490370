"""The commands of `mien`, one a file; what is heavy is imported inside the functions."""
