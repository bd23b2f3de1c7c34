"""Training: `fit`, the loop around a step, schedules, and a drop-in for Pyro's SVI."""
