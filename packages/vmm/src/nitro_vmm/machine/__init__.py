"""The machine without its surroundings: memory, bus, devices and the threads of its processors."""
