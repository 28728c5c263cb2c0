"""The one training loop: loss, optimizer, steps, checkpoints. Decides nothing about when to evaluate or stop."""
