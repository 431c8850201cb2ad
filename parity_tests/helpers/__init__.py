"""What tests share: directories of text, states to save, runs of the commands."""
