"""What is rounded as it is computed: products, cached keys, random features; beside it what it stands for."""
