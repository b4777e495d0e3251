"""Where an encoder lives: in this process, or in one of its own."""
