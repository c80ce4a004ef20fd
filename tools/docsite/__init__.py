"""The documentation site's pages, made from the methods' cards, their options and the evidence."""
