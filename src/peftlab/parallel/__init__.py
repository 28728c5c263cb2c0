"""One run in several processes: what they share, sum and split. Without a launcher all of it does nothing."""
