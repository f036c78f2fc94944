"""Schedules, reverse kernels and trajectories: pure functions on tensors, no networks."""

from nablaflow.diffusion.flow_samplers import FLOW_SAMPLERS
from nablaflow.diffusion.flow_schedule import FlowSchedule, shift_by_tokens
from nablaflow.diffusion.kernels import (
    adds_noise,
    has_posterior_means,
    jump_mean,
    kernel_mean,
    mean_per_score,
    mean_per_x0,
    noising_scores,
    score_of_next,
    score_of_state,
)
from nablaflow.diffusion.prediction import (
    Prediction,
    flow_time,
    network_input,
    predict_from,
    score,
)
from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.renoising import noised, noised_afresh
from nablaflow.diffusion.samplers import SAMPLERS, build_process
from nablaflow.diffusion.trajectory import (
    Noise,
    Trajectories,
    Transitions,
    sample_trajectories,
    trajectory_noise,
)
from nablaflow.diffusion.transitions import draw_transitions, strata_count
from nablaflow.diffusion.value_step import Step, ValueStep, check_step, value_step
from nablaflow.diffusion.variance import Variance, check_variance, left_open, squared_errors

__all__ = [
    "FLOW_SAMPLERS",
    "SAMPLERS",
    "FlowSchedule",
    "Noise",
    "Prediction",
    "ReverseProcess",
    "Step",
    "Trajectories",
    "Transitions",
    "ValueStep",
    "Variance",
    "adds_noise",
    "build_process",
    "check_step",
    "check_variance",
    "draw_transitions",
    "flow_time",
    "has_posterior_means",
    "jump_mean",
    "kernel_mean",
    "left_open",
    "mean_per_score",
    "mean_per_x0",
    "network_input",
    "noised",
    "noised_afresh",
    "noising_scores",
    "predict_from",
    "sample_trajectories",
    "score",
    "score_of_next",
    "score_of_state",
    "shift_by_tokens",
    "squared_errors",
    "strata_count",
    "trajectory_noise",
    "value_step",
]
