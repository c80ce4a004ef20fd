"""What a cache keeps of a long text: rules that let positions go, or keep them smaller, on one contract."""
