"""One training loop for every training: an :class:`Objective` goes in, :class:`Progress` comes out.

``objective.py`` says what a training must give; ``trainer.py`` makes a step and holds the state; ``loop.py`` runs the
budget, checkpoints and the log around it.
"""

from sfumato.engine.average import Average
from sfumato.engine.budget import Budget
from sfumato.engine.loop import train_steps
from sfumato.engine.objective import Moment, Objective, decay_groups
from sfumato.engine.progress import Progress
from sfumato.engine.trainer import Trainer

__all__ = ["Average", "Budget", "Moment", "Objective", "Progress", "Trainer", "decay_groups", "train_steps"]
