"""The daemon: cameras in, face events out."""
