"""Will it fit, and how fast can it be: a run compiled for devices that this machine does not have."""
