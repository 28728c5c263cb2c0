"""What must hold for a method on a model, found by trying it: each invariant is one small function."""
