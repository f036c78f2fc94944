"""What a method may need to know of the reference before its first update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from nablaflow.config.recipe import Config
from nablaflow.estimators import (
    LogFlowFit,
    Networks,
    ReferenceSamples,
    fit_log_flow,
    measure_gamma,
)
from nablaflow.estimators.contrastive import work as fit_work
from nablaflow.models import DiffusionModel, make_log_flow
from nablaflow.prompts.sets import prompt_batch
from nablaflow.seeds import stream
from nablaflow.training.processes import from_main

AT_ONCE = 32  # trajectories
GAMMA_EACH = 16  # trajectories of a prompt, which its mean is taken off
VALUE_EACH = 128  # samples of a prompt, which are contrasted with each other

Done = Callable[[int], None]


def unmeasured_gamma(config: Config, model: DiffusionModel) -> torch.Tensor | None:
    """NaN by k until it is measured; None where the method does not ask for it."""
    if not config.method.needs_measured_gamma:
        return None
    return torch.full((model.process.steps + 1,), torch.nan)


def unfitted_log_flow(config: Config, model: DiffusionModel) -> LogFlowFit | None:
    """The same of the log flow."""
    if not config.method.needs_log_flow:
        return None
    network = make_log_flow(model, stream(config.seed, "log flow"))
    return LogFlowFit.unfitted(network, model.process.steps)


class Beginning:
    """Finds it on the main process, unless a resumed run has it; all processes have it then.

    Args:
        networks: whose `measured_gamma` and `log_flow` are filled in, in place.
    """

    def __init__(
        self, config: Config, prompts: list[str], networks: Networks, accelerator: Accelerator
    ) -> None:
        self.config, self.prompts, self.networks = config, prompts, networks
        self.accelerator = accelerator

    @property
    def gamma_work(self) -> int:
        """Trajectories that `gamma` has to sample; 0 where there is nothing to do."""
        gamma = self.networks.measured_gamma
        to_do = gamma is not None and not gamma.isfinite().all()
        return len(self._gamma_prompts()) if to_do else 0

    def gamma(self, on_progress: Done = lambda done: None) -> None:
        """Measure how far to trust the forward-looking reward.

        Args:
            on_progress: told how many more of `gamma_work` are done.

        Raises:
            UserError: the reward is the same for all reference images of a prompt.
        """
        if not self.gamma_work:
            return
        found, networks = None, self.networks
        if self.accelerator.is_main_process:
            prompts = self._gamma_prompts()
            found = measure_gamma(
                networks.model,
                networks.reward,
                prompts,
                self._seeds("gamma", len(prompts)),
                batch=AT_ONCE,
                on_progress=on_progress,
            )
        assert networks.measured_gamma is not None
        networks.measured_gamma.copy_(from_main(found))

    @property
    def log_flow_work(self) -> int:
        """Samples and iterations that `log_flow` has to do; 0 where there is nothing to do."""
        fit = self.networks.log_flow
        if fit is None or fit.fitted:
            return 0
        return len(self._value_prompts()) + fit_work(self.networks.model.process.steps)

    def log_flow(self, on_progress: Done = lambda done: None) -> None:
        """Fit what the forward-looking reward misses of the value.

        Args:
            on_progress: told how many more of `log_flow_work` are done.

        Raises:
            UserError: the reward is the same for all reference images of a prompt.
        """
        if not self.log_flow_work:
            return
        state, fit = None, self.networks.log_flow
        assert fit is not None
        if self.accelerator.is_main_process:
            state = self._fitted(fit, on_progress).state()
        fit.take(from_main(state))

    def _fitted(self, fit: LogFlowFit, on_progress: Done) -> LogFlowFit:
        model, reward, prompts = self.networks.model, self.networks.reward, self._value_prompts()
        seeds = self._seeds("value", len(prompts))
        samples = ReferenceSamples.draw(model, reward, prompts, seeds, AT_ONCE, on_progress)
        generator = torch.Generator().manual_seed(stream(self.config.seed, "contrasts"))
        beta = self.config.method.beta
        return fit_log_flow(fit.network, model, reward, beta, samples, generator, on_progress)

    def _gamma_prompts(self) -> list[str]:
        return self._repeated(self.config.training.gamma_trajectories, GAMMA_EACH)

    def _value_prompts(self) -> list[str]:
        return self._repeated(self.config.training.value_samples, VALUE_EACH)

    def _repeated(self, total: int, each: int) -> list[str]:
        """Some prompts, each ``each`` times or more, about ``total`` in all."""
        texts = prompt_batch(self.prompts, 0, max(1, total // each), self.config.seed)
        texts = list(dict.fromkeys(texts))
        return [text for text in texts for _ in range(max(2, total // len(texts)))]

    def _seeds(self, purpose: str, count: int) -> list[int]:
        return [stream(self.config.seed, purpose, row) for row in range(count)]
