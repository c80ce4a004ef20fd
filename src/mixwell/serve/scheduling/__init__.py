"""Which requests a step reads and how much of each, on one contract, and a server in simulated time to try it on."""
