"""LoRAs that peft and diffusers made, without this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from nablaflow.models import load_pipeline
from tests.support.pipelines import perturb

FILE = "pytorch_lora_weights.safetensors"
WIDELY = ["to_q", "to_v", "to_out.0"]
"""On a tiny transformer fewer layers change an image too little to see it."""


def stock_lora(base: Path, folder: Path, part: str = "unet", **config: Any) -> Path:
    """A LoRA that peft and diffusers made without this project, far from nothing."""
    pipeline: Any = load_pipeline(str(base))
    network = getattr(pipeline, part)
    network.add_adapter(
        LoraConfig(**{"r": 4, "lora_alpha": 6.0, "target_modules": ["to_q"], **config})
    )
    perturb(network, scale=0.2)
    layers = get_peft_model_state_dict(network)
    metadata = network.peft_config["default"].to_dict()
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
    given = {f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": plain}
    type(pipeline).save_lora_weights(folder, **given)
    return folder
