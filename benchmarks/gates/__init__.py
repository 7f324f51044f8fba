"""One test for each row of the spec's table *Gates*, on pytest-benchmark; limits come from the table only."""
