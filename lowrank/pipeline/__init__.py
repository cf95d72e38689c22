"""The stages wired together. Every stage leaves files that the next one reads."""

from lowrank.pipeline.analyzing import analyze, analyze_weights, kept_analysis, settings_of
from lowrank.pipeline.compressing import SAME_CHANNELS, compress
from lowrank.pipeline.elastic import DATA_FILE as ELASTIC_DATA
from lowrank.pipeline.elastic import export_elastic
from lowrank.pipeline.evaluating import evaluate
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.exporting import export, export_adapter_inputs, export_ort, graph_of
from lowrank.pipeline.healing import Training, heal
from lowrank.pipeline.planning import factorize, read_plan, select
from lowrank.pipeline.preflight import Estimate, foresee
from lowrank.pipeline.run import CHECKPOINT_FILE, ONNX_FILE, PLAN_FILE, REPORT_FILE, RUN
from lowrank.pipeline.settings import Settings
from lowrank.pipeline.timing import bench_table
from lowrank.pipeline.truncating import cut_name, truncate

__all__ = [
    "CHECKPOINT_FILE",
    "ELASTIC_DATA",
    "ONNX_FILE",
    "PLAN_FILE",
    "REPORT_FILE",
    "RUN",
    "SAME_CHANNELS",
    "Estimate",
    "Execution",
    "Settings",
    "Training",
    "analyze",
    "analyze_weights",
    "bench_table",
    "compress",
    "cut_name",
    "evaluate",
    "export",
    "export_adapter_inputs",
    "export_elastic",
    "export_ort",
    "factorize",
    "foresee",
    "graph_of",
    "heal",
    "kept_analysis",
    "read_plan",
    "select",
    "settings_of",
    "truncate",
]
