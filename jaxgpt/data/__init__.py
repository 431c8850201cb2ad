"""Where the tokens of a run come from: `corpora` finds text, `shards` keeps tokens in files, `batches` cuts rows."""
