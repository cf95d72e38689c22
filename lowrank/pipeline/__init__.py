"""The stages wired together. Every stage leaves files that the next one reads."""

from lowrank.healing.training import Training
from lowrank.pipeline.analyzing import analyze, analyze_weights
from lowrank.pipeline.budgets.operator_times import BOTH, bench_table
from lowrank.pipeline.budgets.trade_off import trade_off
from lowrank.pipeline.compressing import compress
from lowrank.pipeline.cutting_vocabulary import cut_vocabulary
from lowrank.pipeline.estimate import foresee
from lowrank.pipeline.evaluating import evaluate
from lowrank.pipeline.execution import Execution
from lowrank.pipeline.healing import heal
from lowrank.pipeline.in_place import Compressed, compress_, prepare_
from lowrank.pipeline.plans import factorize, read_plan, select
from lowrank.pipeline.publish.elastic import DATA_FILE as ELASTIC_DATA
from lowrank.pipeline.publish.elastic import export_elastic
from lowrank.pipeline.publish.exporting import export, export_adapter_inputs, export_ort, export_torch, graph_of
from lowrank.pipeline.publish.hub import export_hub
from lowrank.pipeline.request import SAME_CHANNELS
from lowrank.pipeline.run.layout import CHECKPOINT_FILE, ONNX_FILE, PAGE_FILE, PLAN_FILE, REPORT_FILE, RUN
from lowrank.pipeline.run.page import draw_page, page_data_in, renew_page
from lowrank.pipeline.search.sweeping import PICTURE_FILE, POINTS_FOLDER, sweep
from lowrank.pipeline.search.tuning import tune
from lowrank.pipeline.session import settings_of, stored_analysis
from lowrank.pipeline.settings import Settings
from lowrank.pipeline.truncating import cut_name, truncate

__all__ = [
    "BOTH",
    "CHECKPOINT_FILE",
    "ELASTIC_DATA",
    "ONNX_FILE",
    "PAGE_FILE",
    "PICTURE_FILE",
    "PLAN_FILE",
    "POINTS_FOLDER",
    "REPORT_FILE",
    "RUN",
    "SAME_CHANNELS",
    "Compressed",
    "Execution",
    "Settings",
    "Training",
    "analyze",
    "analyze_weights",
    "bench_table",
    "compress",
    "compress_",
    "cut_name",
    "cut_vocabulary",
    "draw_page",
    "evaluate",
    "export",
    "export_adapter_inputs",
    "export_elastic",
    "export_hub",
    "export_ort",
    "export_torch",
    "factorize",
    "foresee",
    "graph_of",
    "heal",
    "page_data_in",
    "prepare_",
    "read_plan",
    "renew_page",
    "select",
    "settings_of",
    "stored_analysis",
    "sweep",
    "trade_off",
    "truncate",
    "tune",
]
