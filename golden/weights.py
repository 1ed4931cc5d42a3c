"""Makes the weight files of other programs that the tests read (crates/alexnet/tests/weights/), and what those programs
compute with them.

    python golden/weights.py          # needs torch, onnx (with protobuf), onnxruntime, safetensors, numpy

Networks are tiny, so that each file is a few kilobytes: `plain` as torchvision builds one (convolution, ReLU, pooling,
dropout, linear), `caffe` with what Caffe's AlexNets have besides (groups, normalization, pooling rounded up). PyTorch's
files are written by torch.save, in both of its formats; ONNX by the onnx package, and run by ONNX Runtime; Caffe's
messages are declared here from caffe.proto's field numbers, written by Google's protobuf, and their outputs are
computed by PyTorch, with blue first and ceil pooling, as Caffe does.
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

OUT = Path(__file__).resolve().parent.parent / "crates" / "alexnet" / "tests" / "weights"


def pixels(c, h, w):
    """(c·h·w) values between -1 and 1 that any program can make: (7919·i mod 512) / 256 - 1."""
    return ((np.arange(c * h * w) * 7919) % 512 / 256 - 1).astype(np.float32).reshape(1, c, h, w)


def caffe_messages():
    """The few of caffe.proto's messages that a network with weights needs."""
    T = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe", syntax="proto2")

    def message(name, *fields):
        m = file.message_type.add(name=name)
        for label, kind, field, number in fields:
            f = m.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                f.type, f.type_name = T.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                f.type = kind
            if label == T.LABEL_REPEATED and kind in (T.TYPE_FLOAT, T.TYPE_INT64):
                f.options.packed = field != "input_dim"

    one, many = T.LABEL_OPTIONAL, T.LABEL_REPEATED
    text, real, size, whole = T.TYPE_STRING, T.TYPE_FLOAT, T.TYPE_UINT32, T.TYPE_INT64
    message("BlobShape", (many, whole, "dim", 1))
    message("BlobProto", (one, whole, "num", 1), (one, whole, "channels", 2), (one, whole, "height", 3),
            (one, whole, "width", 4), (many, real, "data", 5), (one, "BlobShape", "shape", 7))
    message("ConvolutionParameter", (one, size, "num_output", 1), (many, size, "pad", 3),
            (many, size, "kernel_size", 4), (one, size, "group", 5), (many, size, "stride", 6))
    message("PoolingParameter", (one, size, "pool", 1), (one, size, "kernel_size", 2), (one, size, "stride", 3))
    message("LRNParameter", (one, size, "local_size", 1), (one, real, "alpha", 2), (one, real, "beta", 3))
    message("InnerProductParameter", (one, size, "num_output", 1))
    message("DropoutParameter", (one, real, "dropout_ratio", 1))
    params = [("convolution_param", "ConvolutionParameter", 106, 10), ("dropout_param", "DropoutParameter", 108, 12),
              ("inner_product_param", "InnerProductParameter", 117, 17), ("lrn_param", "LRNParameter", 118, 18),
              ("pooling_param", "PoolingParameter", 121, 19)]
    message("LayerParameter", (one, text, "name", 1), (one, text, "type", 2), (many, text, "bottom", 3),
            (many, text, "top", 4), (many, "BlobProto", "blobs", 7), *[(one, t, n, new) for n, t, new, _ in params])
    message("V1LayerParameter", (many, text, "bottom", 2), (many, text, "top", 3), (one, text, "name", 4),
            (one, T.TYPE_INT32, "type", 5), (many, "BlobProto", "blobs", 6), *[(one, t, n, old) for n, t, _, old in params])
    message("NetParameter", (one, text, "name", 1), (many, "V1LayerParameter", "layers", 2), (many, text, "input", 3),
            (many, whole, "input_dim", 4), (many, "LayerParameter", "layer", 100))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


class Caffe(nn.Module):
    """conv 4@3x3/2 - ReLU - LRN 3 - max 3/2 up - conv 4@3x3 pad 1 in 2 groups - ReLU - fc 5 - ReLU - dropout - fc 3."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.norm1 = nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=1.0)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.fc3 = nn.Linear(4 * 3 * 3, 5)
        self.fc4 = nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm1(torch.relu(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = torch.relu(self.conv2(x)).flatten(1)
        return self.fc4(torch.relu(self.fc3(x)))


def caffe_file(net, NetParameter, first_generation):
    file = NetParameter(name="TinyCaffe")
    file.input.append("data")
    file.input_dim.extend([1, 3, 13, 13])
    numbers = {"Convolution": 4, "ReLU": 18, "LRN": 15, "Pooling": 17, "InnerProduct": 14, "Dropout": 6, "Softmax": 20}

    def layer(name, kind, bottom, top, module=None, **params):
        entry = file.layers.add() if first_generation else file.layer.add()
        entry.name, entry.type = name, numbers[kind] if first_generation else kind
        entry.bottom.append(bottom)
        entry.top.append(top)
        for key, fields in params.items():
            for field, value in fields.items():
                if isinstance(value, list):
                    getattr(getattr(entry, key), field).extend(value)
                else:
                    setattr(getattr(entry, key), field, value)
        for tensor in [] if module is None else [module.weight, module.bias]:
            values = tensor.detach().numpy()
            if name == "conv1" and values.ndim == 4:
                values = values[:, ::-1]
            blob = entry.blobs.add()
            blob.data.extend(np.ascontiguousarray(values).ravel().tolist())
            if first_generation:
                blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - values.ndim) + values.shape
            else:
                blob.shape.dim.extend(values.shape)

    def conv(module):
        return {"num_output": module.out_channels, "kernel_size": [3], "stride": [module.stride[0]],
                "pad": [module.padding[0]], "group": module.groups}

    layer("conv1", "Convolution", "data", "conv1", net.conv1, convolution_param=conv(net.conv1))
    layer("relu1", "ReLU", "conv1", "conv1")
    layer("norm1", "LRN", "conv1", "norm1", lrn_param={"local_size": 3, "alpha": 0.5, "beta": 0.75})
    layer("pool1", "Pooling", "norm1", "pool1", pooling_param={"pool": 0, "kernel_size": 3, "stride": 2})
    layer("conv2", "Convolution", "pool1", "conv2", net.conv2, convolution_param=conv(net.conv2))
    layer("relu2", "ReLU", "conv2", "conv2")
    layer("fc3", "InnerProduct", "conv2", "fc3", net.fc3, inner_product_param={"num_output": 5})
    layer("relu3", "ReLU", "fc3", "fc3")
    layer("drop3", "Dropout", "fc3", "fc3", dropout_param={"dropout_ratio": 0.5})
    layer("fc4", "InnerProduct", "fc3", "fc4", net.fc4, inner_product_param={"num_output": 3})
    layer("prob", "Softmax", "fc4", "prob")
    return file.SerializeToString()


def onnx_file(net):
    """The same network as the model zoo's converters write it: padding behind the map instead of rounding up, one matrix
    product that is transposed and one that is not, a reshape, a softmax."""
    t = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    weights = [numpy_helper.from_array(t[n], n.replace(".weight", "_w_0").replace(".bias", "_b_0"))
               for n in t if n != "fc4.weight"]
    weights.append(numpy_helper.from_array(np.ascontiguousarray(t["fc4.weight"].T), "fc4_w_0"))
    weights.append(numpy_helper.from_array(np.array([1, 36], dtype=np.int64), "flat_shape"))
    nodes = [
        helper.make_node("Conv", ["data_0", "conv1_w_0", "conv1_b_0"], ["conv1_1"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["conv1_1"], ["conv1_2"]),
        helper.make_node("LRN", ["conv1_2"], ["norm1_1"], size=3, alpha=0.5, beta=0.75, bias=1.0),
        helper.make_node("MaxPool", ["norm1_1"], ["pool1_1"], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("Conv", ["pool1_1", "conv2_w_0", "conv2_b_0"], ["conv2_1"], kernel_shape=[3, 3],
                         strides=[1, 1], pads=[1, 1, 1, 1], group=2),
        helper.make_node("Relu", ["conv2_1"], ["conv2_2"]),
        helper.make_node("Reshape", ["conv2_2", "flat_shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc3_w_0", "fc3_b_0"], ["fc3_1"], transB=1),
        helper.make_node("Relu", ["fc3_1"], ["fc3_2"]),
        helper.make_node("Gemm", ["fc3_2", "fc4_w_0", "fc4_b_0"], ["fc4_1"]),
        helper.make_node("Softmax", ["fc4_1"], ["prob_1"], axis=1),
    ]
    graph = helper.make_graph(nodes, "tiny", [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 13, 13])],
                              [helper.make_tensor_value_info("prob_1", TensorProto.FLOAT, [1, 3])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="golden")
    model.ir_version = 7
    onnx.checker.check_model(model)
    return model.SerializeToString()


def main():
    torch.manual_seed(1)
    OUT.mkdir(exist_ok=True)
    expected = {}

    plain = nn.Sequential(OrderedDict(
        features=nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(nn.Dropout(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)),
    )).eval()
    with torch.no_grad():
        expected["plain"] = plain(torch.from_numpy(pixels(3, 9, 9)))[0].softmax(0).tolist()
    state = plain.state_dict()
    torch.save(state, OUT / "plain-zip.pth")
    torch.save(state, OUT / "plain-legacy.pth", _use_new_zipfile_serialization=False)
    # A training checkpoint: names of DataParallel, parameters, an optimizer, views of one storage, half precision.
    shared = torch.arange(1000, dtype=torch.float32)
    wrapped = OrderedDict((f"module.{k}", nn.Parameter(v)) for k, v in state.items())
    wrapped["module.features.0.weight"] = nn.Parameter(
        state["features.0.weight"].permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3))
    optimizer = {"state": {0: {"momentum_buffer": shared[10:20]}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 90, "arch": "alexnet", "state_dict": wrapped, "best_acc1": shared[3], "optimizer": optimizer},
               OUT / "plain-checkpoint.pth", _use_new_zipfile_serialization=False)
    save_file({k: v.half() for k, v in zip(
        ["conv1.weight", "conv1.bias", "fc2.weight", "fc2.bias", "fc3.weight", "fc3.bias"], state.values())},
        OUT / "plain-f16.safetensors", metadata={"made": "by golden/weights.py"})

    caffe = Caffe().eval()
    with torch.no_grad():
        expected["caffe"] = caffe(torch.from_numpy(pixels(3, 13, 13)))[0].softmax(0).tolist()
    NetParameter = caffe_messages()
    (OUT / "caffe-v1.caffemodel").write_bytes(caffe_file(caffe, NetParameter, True))
    (OUT / "caffe-v2.caffemodel").write_bytes(caffe_file(caffe, NetParameter, False))
    model = onnx_file(caffe)
    (OUT / "caffe.onnx").write_bytes(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected["onnx"] = session.run(None, {"data_0": pixels(3, 13, 13)})[0][0].tolist()
    np.testing.assert_allclose(expected["onnx"], expected["caffe"], rtol=1e-5)
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for path in sorted(OUT.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
