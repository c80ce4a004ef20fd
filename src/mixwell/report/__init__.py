"""Sections of the report of a run: from what its stages wrote to plain text, tables and charts."""
