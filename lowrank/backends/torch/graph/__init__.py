"""ONNX graphs as torch modules, so that they can be differentiated."""

from lowrank.backends.torch.graph.as_module import GraphModule, check_operators, module_of_graph

__all__ = ["GraphModule", "check_operators", "module_of_graph"]
