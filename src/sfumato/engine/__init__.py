"""The training loop: budget, checkpoint and resume, interrupts."""
