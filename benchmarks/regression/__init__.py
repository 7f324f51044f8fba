"""Each commit beside its base: rounds of fresh processes, a verdict, a report, a history."""
