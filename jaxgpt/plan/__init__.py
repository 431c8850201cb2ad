"""Will it fit, and how fast can it be: a run compiled for devices that are not here."""
