"""The display of a run while it trains."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from common.tables import metric_text
from models.check import RETRACE_TOLERANCE

SECONDS_BETWEEN_LINES = 10  # if stderr is not a terminal


class RunProgress:
    """A bar with loss and metric on a terminal, else one line per evaluation, at most every 10 s, and the last one.

    On a narrow terminal the bar leaves out the step and the time left, never the metric. The time left does not count
    what is compiled before the first step and in the first evaluation. With a folder `events`, it also writes event
    files for TensorBoard.
    """

    def __init__(self, name: str, config, events: Path | None):
        from tqdm import tqdm

        self.name, self.config = name, config
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.num_steps,
            desc="compiling",
            bar_format="{desc} |{bar}|",
            disable=not self.interactive,
            leave=False,
            dynamic_ncols=True,
        )
        self.validation = ""
        # Time and step of the last call of `step`, and the two ends of dispatches that give the time left.
        self.last: tuple[float, int] | None = None
        self.since: tuple[float, int] | None = None
        self.until: tuple[float, int] | None = None
        self.evaluated = False
        self.line, self.line_at = "", -float("inf")  # the line that is not printed yet; when the last one was
        self.warned: set[str] = set()  # the kinds of warnings that were given
        self.events, self.writer = events, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()
        self._print_line()
        if self.writer is not None:
            self.writer.close()

    def start(self, dataset, parameters: int) -> None:
        """Say what is trained: the model and the training part of a `Dataset`."""
        self._say(
            f"{self.name}: {parameters:,} parameters, {self.config.num_steps} steps, {dataset.train.size} training "
            f"series x {dataset.length} time steps x {dataset.data_dim} channel{'s' * (dataset.data_dim > 1)}"
        )

    def resume(self, step: int, damaged: dict[int, str]) -> None:
        """The run continues after `step`; `damaged` gives the problems of later checkpoints."""
        for number, problem in damaged.items():
            self._say(f"{self.name}: the checkpoint of step {number} is damaged: {problem}")
        self._say(f"{self.name}: resumes from step {step}")
        self.bar.update(step)

    def step(self, step: int, loss: float) -> None:
        """Show the loss of a step."""
        now, total = time.monotonic(), self.config.num_steps
        if self.last is not None and now - self.last[0] > 0.05:  # the steps of a dispatch are told at once
            self.since, self.until = self.since or self.last, self.last
        self.last = now, step
        parts = [f"{step}/{total}"]
        if self.since is not None and self.until is not None and self.since != self.until:
            (start, first), (end, last) = self.since, self.until
            parts = [f"{self.bar.format_interval((end - start) / (last - first) * (total - step))} left", *parts]
        text = f"loss {metric_text(loss, self.config.metric)}{self.validation}"
        with suppress(OSError, ValueError):  # no terminal
            width = os.get_terminal_size(sys.stderr.fileno()).columns - len(" |=|")
            while parts and len(", ".join([text, *parts])) > width:
                parts.pop()
        self.bar.set_description_str(", ".join([text, *parts]), refresh=False)
        self.bar.update()

    def evaluation(self, evaluation) -> None:
        """Show a `train.Evaluation`."""
        metric = self.config.metric
        numbers = (evaluation.loss, evaluation.train_metric, evaluation.val_metric)
        loss, training, validation = (metric_text(number, metric) for number in numbers)
        self.validation = f", val {metric} {validation}"
        if not self.evaluated:
            self.evaluated, self.last, self.since, self.until = True, None, None, None
        if not self.interactive:
            self.line = (
                f"{self.name} step {evaluation.step}/{self.config.num_steps}: loss {loss}, {metric} {training} "
                f"(validation {validation}), {evaluation.seconds:.1f} s"
            )
            if time.monotonic() - self.line_at >= SECONDS_BETWEEN_LINES:
                self._print_line()
        self._warn_of_retrace(evaluation)
        self._warn_of_no_gradient(evaluation)
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
        if error is None or error <= RETRACE_TOLERANCE:
            return
        self._warn(
            "retrace",
            evaluation.step,
            f"an echo without nudges misses the start of the free pass by {error:.2g} of the state (more than "
            f"{RETRACE_TOLERANCE:g}). The gradients may be wrong: the kinetic energy is not even, an energy has a "
            "jump, or the dynamics are chaotic. models.check_gradient tells which. A smaller step or BPTT helps.",
        )

    def _warn_of_no_gradient(self, evaluation) -> None:
        """Once, if all gradients since the last evaluation are 0: every later step would leave the model as it is."""
        if evaluation.gradient_norm == 0:
            self._warn(
                "gradient",
                evaluation.step,
                "the gradients of all steps since the last evaluation are exactly 0, so the model does not learn any "
                "more. Its outputs or activations are saturated. Start again with a smaller lr, a longer warmup, or "
                "other first periods (shortest_period, longest_period, step_init).",
            )

    def _warn(self, kind: str, step: int, text: str) -> None:
        """Say it, if it is the first of its kind."""
        if kind not in self.warned:
            self.warned.add(kind)
            self._say(f"{self.name}: WARNING at step {step}: {text}")

    def _print_line(self) -> None:
        if self.line:
            self._say(self.line)
            self.line, self.line_at = "", time.monotonic()

    def _say(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)  # below it, all bars are drawn again
