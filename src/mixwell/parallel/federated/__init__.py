"""Clients that learn together and keep their rows: what each sends, what becomes of it, and what it costs."""
