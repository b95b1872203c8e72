"""How far a run has come, and which of its weights are the model."""

from dataclasses import dataclass, field

from prospect.model.settings import HEADS
from prospect.training.loop import StepResult
from prospect.training.settings import EarlyStopping, TrainingError


@dataclass
class Progress:
    """What a checkpoint keeps besides weights and optimizer."""

    step: int = 0
    """Steps done; with the seed it says which clips come next and what is drawn for them."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    trained_steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))
    validation: dict[str, float] = field(default_factory=dict)
    """Losses and scores of the latest validation."""
    validated: int = 0
    """The step after which it was."""
    best: dict[str, float] = field(default_factory=dict)
    """What was measured of the weights that early stopping found best, and ..."""
    best_step: int = 0
    waited: int = 0
    """Validations since then."""
    stopped: bool = False

    def add(self, result: StepResult) -> None:
        if result.step == 0:
            self.first_loss = result.loss
        self.step, self.last_loss = result.step + 1, result.loss
        for head, trained in result.trained.items():
            self.trained_steps[head] += trained

    def judge(self, rule: EarlyStopping) -> bool:
        """Whether the latest validation is the best so far; sets `stopped` when too many were not.

        Raises:
            TrainingError: it has not measured the rule's metric.
        """
        if rule.metric not in self.validation:
            known = ", ".join(self.validation) or "nothing, for want of a validation split"
            raise TrainingError(f"training.early_stopping.metric is {rule.metric!r}, but validation measures {known}")
        better = rule.improves(self.validation[rule.metric], self.best.get(rule.metric))
        if better:
            self.best, self.best_step, self.waited = dict(self.validation), self.step, 0
        else:
            self.waited += 1
        self.stopped = self.waited >= rule.patience
        return better

    @property
    def model_step(self) -> int:
        """The step whose weights are the model, if the run ends here."""
        return self.best_step or self.step

    @property
    def of_model(self) -> dict[str, float]:
        """Losses and scores of these weights."""
        return self.best or self.validation
