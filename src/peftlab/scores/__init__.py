"""A model and a task to graded predictions and metrics."""
