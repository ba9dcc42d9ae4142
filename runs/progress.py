"""The display of a run while it trains."""

import sys
from pathlib import Path

from models.check import RETRACE_TOLERANCE


class RunProgress:
    """A bar with loss and metric on a terminal; one line per evaluation if stderr is not a terminal.

    With a folder `events`, it also writes event files for TensorBoard.
    """

    def __init__(self, name: str, config, events: Path | None):
        from tqdm import tqdm

        self.name, self.config = name, config
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.num_steps,
            desc=name,
            unit="step",
            disable=not self.interactive,
            leave=False,
            dynamic_ncols=True,
        )
        self.validation = ""
        self.warned = False
        self.events, self.writer = events, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def resume(self, step: int, damaged: dict[int, str]) -> None:
        """The run continues after `step`; `damaged` gives the problems of later checkpoints."""
        for number, problem in damaged.items():
            print(f"{self.name}: the checkpoint of step {number} is damaged: {problem}", file=sys.stderr)
        print(f"{self.name}: resumes from step {step}", file=sys.stderr)
        self.bar.update(step)

    def step(self, _, loss: float) -> None:
        """Show the loss of a step."""
        self.bar.set_postfix_str(f"loss {loss:.4f}{self.validation}", refresh=False)
        self.bar.update()

    def evaluation(self, evaluation) -> None:
        """Show a `train.Evaluation`."""
        metric = self.config.metric
        self.validation = f", validation {metric} {evaluation.val_metric:.4f}"
        if not self.interactive:
            print(
                f"{self.name} step {evaluation.step}/{self.config.num_steps}: loss {evaluation.loss:.4f}, {metric} "
                f"{evaluation.train_metric:.4f} (validation {evaluation.val_metric:.4f}), {evaluation.seconds:.1f} s",
                file=sys.stderr,
            )
        self._warn_of_retrace(evaluation)
        if self.events is None:
            return
        if self.writer is None:
            from tensorboardX import SummaryWriter

            # TensorBoard ignores what an earlier process wrote for this step and later ones.
            self.writer = SummaryWriter(str(self.events), purge_step=evaluation.step)
        for field, value in evaluation._asdict().items():
            if value is not None and field != "step":
                self.writer.add_scalar(field, value, evaluation.step)
        self.writer.flush()

    def _warn_of_retrace(self, evaluation) -> None:
        """Once, if an echo without nudges does not return. `metrics.jsonl` has the error of every evaluation."""
        error = evaluation.retrace_error
        if self.warned or error is None or error <= RETRACE_TOLERANCE:
            return
        self.warned = True
        self.bar.clear()
        print(
            f"{self.name}: WARNING at step {evaluation.step}: an echo without nudges misses the start of the free pass "
            f"by {error:.2g} of the state (more than {RETRACE_TOLERANCE:g}). The gradients may be wrong: the kinetic "
            "energy is not even, an energy has a jump, or the dynamics are chaotic. models.check_gradient tells which. "
            "A smaller step or BPTT helps.",
            file=sys.stderr,
        )
