"""The float export: a PyTorch network as an ONNX graph."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pipeline.artifact import bounds, operators
from pipeline.artifact.format import INPUT, OUTPUT
from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    import onnx

    from pipeline.models.network import ModelState


def float_model(state: ModelState) -> onnx.ModelProto:
    """The float model as it is deployed, with batch normalization folded into its layers."""
    from pipeline.models.network import fold, plain

    model = exported(fold(plain(state)))
    strip_metadata(model)
    return model


def refuse_unexportable(state: ModelState, label: str) -> None:
    """UserError where no artifact can be made of such a network, or none that can be loaded: told
    before it is trained."""
    try:
        model = float_model(state)
    except Exception as error:  # whatever the exporter raises at a user's code
        cause = error.__cause__ or error
        raise UserError(
            f"model {label}: PyTorch's exporter cannot make an ONNX graph of it "
            f"({type(cause).__name__}: {first_line(cause)}), so it could not be deployed"
        ) from error
    try:
        bounds.cost(model, state.spec.shape)
    except ValueError as error:
        raise UserError(
            f"model {label}: the graph that PyTorch's exporter makes of it could not be run: "
            f"{error}"
        ) from error


def exported(state: ModelState) -> onnx.ModelProto:
    """The float graph as the exporter makes it, with the names of modules, files and stack traces
    beside its nodes."""
    import copy

    import torch

    operators.kept()
    network = copy.deepcopy(state.network).cpu().float().eval()
    network = network.to(memory_format=torch.contiguous_format)
    images = torch.zeros((2, *state.spec.shape), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=operators.OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None  # the older exporter gives none, but writes a file
    return program.model_proto


def strip_metadata(model: onnx.ModelProto) -> None:
    """Takes away what the tools that made the graph wrote beside it."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
