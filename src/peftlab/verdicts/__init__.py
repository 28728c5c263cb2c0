"""Records in, conclusions out: intervals, paired tests and the claims that they allow. Needs no torch."""
