"""Metrics (pure functions) and evaluators (collect rows, make a Report)."""

from lib.metrics.evaluator import Keypoint2DEvaluator, PCKhEvaluator, PoseEvaluator
from lib.metrics.pose import JOINT_SETS, METRICS
from lib.metrics.report import Report

__all__ = ["JOINT_SETS", "METRICS", "Keypoint2DEvaluator", "PCKhEvaluator", "PoseEvaluator", "Report"]
