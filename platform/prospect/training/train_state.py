"""Training state that checkpoints carry: steps done, validations, and the weights that early stopping keeps."""

from dataclasses import dataclass, field

from prospect.model.settings import HEADS
from prospect.training.loop import StepResult
from prospect.training.settings import EarlyStopping, TrainingError


@dataclass
class TrainState:
    """Part of a checkpoint beside weights and optimizer."""

    step: int = 0
    """Steps done; with the seed it determines the next clips and their random draws."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    trained_steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))
    validation: dict[str, float] = field(default_factory=dict)
    """Losses and scores of the latest validation."""
    validated: int = 0
    """Step after which it ran."""
    best: dict[str, float] = field(default_factory=dict)
    """Losses and scores of the best weights, with early stopping."""
    best_step: int = 0
    """Step of the best weights."""
    waited: int = 0
    """Validations since the best one."""
    stopped: bool = False

    def add_step(self, result: StepResult) -> None:
        if result.step == 0:
            self.first_loss = result.loss
        self.step, self.last_loss = result.step + 1, result.loss
        for head, trained in result.trained.items():
            self.trained_steps[head] += trained

    def check_early_stopping(self, rule: EarlyStopping) -> bool:
        """Whether the latest validation is the best so far; sets `stopped` after too many that are not.

        Raises:
            TrainingError: the validation has not measured the rule's metric.
        """
        if rule.metric not in self.validation:
            known = ", ".join(self.validation) or "nothing without a validation split"
            raise TrainingError(
                f"`training.early_stopping.metric` ({rule.metric}) is missing from validation, which measures {known}"
            )
        better = rule.improves(self.validation[rule.metric], self.best.get(rule.metric))
        if better:
            self.best, self.best_step, self.waited = dict(self.validation), self.step, 0
        else:
            self.waited += 1
        self.stopped = self.waited >= rule.patience
        return better

    @property
    def model_step(self) -> int:
        """Step of the weights that become the model if the run ends here."""
        return self.best_step or self.step

    @property
    def model_validation(self) -> dict[str, float]:
        """Losses and scores of the weights that become the model."""
        return self.best or self.validation
