"""Searches over configurations on one contract: trials that resume in; the best one, and what was spent, out."""
