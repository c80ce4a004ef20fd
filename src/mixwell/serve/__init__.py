"""Models over HTTP: an engine that batches as requests come, the OpenAI interface to it, and a page to chat on."""
