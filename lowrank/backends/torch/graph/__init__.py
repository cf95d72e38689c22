"""ONNX graphs as torch modules, so that they can be differentiated."""

from lowrank.backends.torch.graph.as_module import GraphModule, module_of_graph

__all__ = ["GraphModule", "module_of_graph"]
