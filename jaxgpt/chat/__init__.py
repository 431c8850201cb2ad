"""Chat models at work: their tools, and what is built on their answers."""
