"""Samples of a model's reference for some purpose: made once, and read from then on."""

from __future__ import annotations

from dataclasses import dataclass

from nablaflow.errors import UserError
from nablaflow.evaluation.bank import sample_states, states_key
from nablaflow.evaluation.kept import find_kept, keep
from nablaflow.models import SamplerSettings
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import Done
from nablaflow.typing import Latents


@dataclass(frozen=True)
class ReferenceStates:
    """What `sample_states` gives of the reference: the shipped, the cached, or made and cached.

    Unlike a bank's they are as they were sampled, float32, since a policy that is still the
    reference has to be found equal to it.

    Attributes:
        fingerprint: of the pretrained weights; empty where nothing is to be kept.
    """

    model: PipelineModel
    sampler: SamplerSettings
    fingerprint: str

    def sample(
        self, prompts: list[str], n: int, *, seed: int, purpose: str, batch: int, on_progress: Done
    ) -> Latents:
        """``n`` clean states, prompts in turns, on the processor.

        Raises:
            UserError: one is not finite.
        """
        # As a bank's, and of the kind of device, on which the last digits depend.
        own, process = (purpose, self.model.device.type), self.model.process
        key = states_key(self.fingerprint, prompts, self.sampler, process, n, seed, own)
        found = find_kept(purpose, key) if self.fingerprint else None
        if found is not None:
            on_progress(n)
            return found["states"]
        with self.model.reference():
            states = sample_states(
                self.model,
                prompts,
                n,
                seed=seed,
                batch=batch,
                purpose=purpose,
                on_progress=on_progress,
            )
        if not states.isfinite().all():
            raise UserError(
                "model: a state that the reference samples is not finite, before any training; its "
                "weights or its scheduler are at fault; get it again"
            )
        if self.fingerprint:
            keep(purpose, key, {"states": states})
        return states
