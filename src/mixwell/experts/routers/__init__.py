"""Routers: from tokens to a `Routing`. The contract is `_parts.Router`."""
