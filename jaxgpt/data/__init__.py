"""Where a run's tokens come from: `shards` and `text_data` read files, `batches` and `text_batches` cut rows."""
