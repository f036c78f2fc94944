"""What a method may need to know of the reference before its first update."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.estimators import (
    LogFlowFit,
    Networks,
    ReferenceSamples,
    fit_log_flow,
    measure_gamma,
)
from nablaflow.estimators.contrastive import work as fit_work
from nablaflow.evaluation.reference_states import ReferenceStates
from nablaflow.evaluation.shares import in_shares
from nablaflow.models import DiffusionModel, make_log_flow
from nablaflow.progress import Done, StartProgress
from nablaflow.prompts.sets import prompt_batch
from nablaflow.seeds import stream
from nablaflow.training.processes import by_main
from nablaflow.typing import Batch, Latents

AT_ONCE = 64  # trajectories at the most
GAMMA_EACH = 16  # trajectories of a prompt, which its mean is taken off
VALUE = "value"  # names the noise of the samples that it is fitted to
VALUE_EACH = 128  # samples of a prompt, which are contrasted with each other


def unmeasured_gamma(config: Config, model: DiffusionModel) -> Tensor | None:
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
    """Finds it, unless a resumed run has it; all processes have it then.

    Args:
        networks: whose `measured_gamma` and `log_flow` are filled in, in place.
        samples: of the reference, those of an earlier run where they are kept.
    """

    def __init__(
        self,
        config: Config,
        prompts: list[str],
        networks: Networks,
        samples: ReferenceStates,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.prompts, self.networks = config, prompts, networks
        self.samples, self.accelerator = samples, accelerator

    @property
    def gamma_work(self) -> int:
        """Trajectories that have to be sampled for gamma; 0 where there is nothing to do."""
        gamma = self.networks.measured_gamma
        to_do = gamma is not None and not gamma.isfinite().all()
        return len(self._gamma_prompts()) if to_do else 0

    @property
    def log_flow_work(self) -> int:
        """What its fit takes, as `fit_work` counts it; 0 where nothing is to be done."""
        fit = self.networks.log_flow
        if fit is None or fit.fitted:
            return 0
        return fit_work(self.networks.model.process.steps, len(self._value_prompts()))

    def find(self, start: StartProgress) -> None:
        """Find what is not there yet; every process must call it.

        Raises:
            UserError: the reward is the same for all reference images of a prompt.
        """
        gamma, fit = self.networks.measured_gamma, self.networks.log_flow
        if gamma is not None and (work := self.gamma_work):
            gamma.copy_(
                by_main(self.accelerator, lambda: self._measured(start("measure gamma", work)))
            )
        if fit is not None and (work := self.log_flow_work):
            images = 2 * len(self._value_prompts())  # sampled, and scored
            samples = self.reference_samples(start("sample the reference for its value", images))
            done = start("fit method.value to the reference", work)
            fit.take(by_main(self.accelerator, lambda: self._fitted(fit, samples, done).state()))

    def _measured(self, on_progress: Done) -> Tensor:
        prompts = self._gamma_prompts()
        return measure_gamma(
            self.networks.model,
            self.networks.reward,
            prompts,
            self._seeds("gamma", len(prompts)),
            batch=self._decoded,
            on_progress=on_progress,
        )

    def reference_samples(self, on_progress: Done) -> ReferenceSamples:
        """Those that a value is fitted to; each process makes its share, and has all."""
        model, prompts, seed = self.networks.model, self._value_prompts(), self.config.seed
        given = {"seed": seed, "purpose": VALUE, "batch": self._sampled}
        states = self.samples.sample(prompts, len(prompts), **given, on_progress=on_progress)
        states = states.to(model.device)
        rewards = self._scored(states, prompts, on_progress)
        return ReferenceSamples.of(model, states, rewards, prompts)

    @torch.no_grad()
    def _scored(self, states: Latents, prompts: list[str], on_progress: Done) -> Batch:
        model, reward = self.networks.model, self.networks.reward

        def work(rows: slice) -> Tensor:
            return reward(model.decode(states[rows]), prompts[rows]).cpu().double()

        setting = "training.decode_batch"
        return torch.cat(in_shares(work, len(states), self._decoded, setting, on_progress))

    def _fitted(self, fit: LogFlowFit, samples: ReferenceSamples, on_progress: Done) -> LogFlowFit:
        model, reward, beta = self.networks.model, self.networks.reward, self.config.method.beta
        generator = torch.Generator().manual_seed(stream(self.config.seed, "contrasts"))
        given = fit.network, model, reward, beta, samples, generator, on_progress
        return fit_log_flow(*given, batch=self._sampled, decode_batch=self._decoded)

    @property
    def _sampled(self) -> int:
        """Trajectories at once."""
        return min(AT_ONCE, self.config.training.rollout_batch or AT_ONCE)

    @property
    def _decoded(self) -> int:
        """Images at once, or trajectories that are decoded as they are sampled."""
        return min(self._sampled, self.config.training.decode_batch or AT_ONCE)

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
