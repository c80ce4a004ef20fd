"""Layers that replace a feed-forward block. The contract is `_parts.ChannelMixer`."""
