"""Our attacks against the peers': the same classifier, the same samples, equal budgets, in the same run. See __main__.py."""
