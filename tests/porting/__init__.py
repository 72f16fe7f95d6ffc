"""What the porting pages promise: one test for each row of their tables."""
