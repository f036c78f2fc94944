"""The contract of a model to align, and one file per family that meets it."""

from nablaflow.quiet import quiet_libraries

with quiet_libraries():  # pipelines name optional packages as they are imported
    from nablaflow.models.condition import Condition
    from nablaflow.models.contract import DiffusionModel
    from nablaflow.models.flow_score import FlowScore, UNetFlowScore
    from nablaflow.models.flow_size import log_flow_size, make_flow_score, make_log_flow
    from nablaflow.models.fused import WithLora
    from nablaflow.models.live import AnyPipeline, LivePipeline
    from nablaflow.models.load import (
        FAMILIES,
        check_is_there,
        family_of,
        hand_over,
        in_four_bits,
        load_model,
        load_pipeline,
    )
    from nablaflow.models.log_flow import ConvLogFlow, LogFlow
    from nablaflow.models.old_policy import OldPolicy
    from nablaflow.models.quantized import Quantized
    from nablaflow.models.random_weights import random
    from nablaflow.models.settings import AdapterSettings, FlowSettings, SamplerSettings
    from nablaflow.models.source import ModelSource, fingerprint, model_source

__all__ = [
    "FAMILIES",
    "AdapterSettings",
    "AnyPipeline",
    "Condition",
    "ConvLogFlow",
    "DiffusionModel",
    "FlowScore",
    "FlowSettings",
    "LivePipeline",
    "LogFlow",
    "ModelSource",
    "OldPolicy",
    "Quantized",
    "SamplerSettings",
    "UNetFlowScore",
    "WithLora",
    "check_is_there",
    "family_of",
    "fingerprint",
    "hand_over",
    "in_four_bits",
    "load_model",
    "load_pipeline",
    "log_flow_size",
    "make_flow_score",
    "make_log_flow",
    "model_source",
    "random",
]
