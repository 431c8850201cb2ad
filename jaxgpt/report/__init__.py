"""One page about one run or several, from the records in their directories."""
