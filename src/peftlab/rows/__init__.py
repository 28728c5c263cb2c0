"""Where rows come from, how they become tokens and labels, and in which batches. Knows no model."""
