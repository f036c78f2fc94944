"""What other programs call a setting, for the line that says which one was meant.

None of these is read as a setting: two spellings for one would make two recipes of one run.
"""

from __future__ import annotations

ALIASES = {
    "batch_size": "training.prompts_per_update",
    "cfg": "sampler.guidance_scale",
    "cfg_scale": "sampler.guidance_scale",
    "checkpointing_steps": "training.checkpoint_every",
    "epochs": "training.updates",
    "gradient_accumulation_steps": "training.micro_batch",
    "guidance": "sampler.guidance_scale",
    "guidance_scale": "sampler.guidance_scale",
    "learning_rate": "optimizer.learning_rate",
    "lora": "model_lora",
    "lora_alpha": "adapter.alpha",
    "lora_path": "model_lora",
    "lora_rank": "adapter.rank",
    "lora_scale": "model_lora_scale",
    "lr": "optimizer.learning_rate",
    "lr_scheduler": "optimizer.schedule",
    "lr_warmup_steps": "optimizer.warmup",
    "max_steps": "training.updates",
    "max_train_steps": "training.updates",
    "mixed_precision": "training.precision",
    "model_id": "model",
    "model_name": "model",
    "num_epochs": "training.updates",
    "num_inference_steps": "sampler.steps",
    "num_images": "training.images_per_prompt",
    "num_steps": "training.updates",
    "num_train_epochs": "training.updates",
    "out": "output_dir",
    "output": "output_dir",
    "per_device_train_batch_size": "training.micro_batch",
    "pretrained_model_name_or_path": "model",
    "prompt": "prompts",
    "resolution": "sampler.height",
    "reward_fn": "reward",
    "sample_batch_size": "training.rollout_batch",
    "sample_guidance_scale": "sampler.guidance_scale",
    "sample_num_steps": "sampler.steps",
    "save_every": "training.checkpoint_every",
    "save_steps": "training.checkpoint_every",
    "scheduler": "sampler.name",
    "target_modules": "adapter.targets",
    "train_batch_size": "training.micro_batch",
    "train_learning_rate": "optimizer.learning_rate",
    "warmup_steps": "optimizer.warmup",
}
"""By the last part of the key that was typed."""
