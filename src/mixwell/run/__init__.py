"""Where methods are run and weighed: recipes, stages, claims, comparisons, reports."""
