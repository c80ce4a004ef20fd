"""What is computed often, made fast for the CPU at hand and for a GPU behind one function each."""
