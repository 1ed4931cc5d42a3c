//! Networks made from others: those of the pre-training runs, and the one with batch normalization.

use super::{alexnet_2012_code, caffenet, conv, layer, linear, relu};
use crate::net::{BatchNorm, Init, Layer, Network, Op};

/// The network of the pre-training runs (#146): [`alexnet_2012_code`] with a sixth convolution over the last pooling,
/// 128 filters a tower that read both towers, 3×3 on 6×6 (`layers/layers-146-*.cfg`). Fall 2009 has 10,184 classes; the
/// fine-tuned network has 1000.
pub fn alexnet_2012_conv6(classes: usize) -> Network {
    let mut net = alexnet_2012_code(classes);
    net.name = "alexnet-2012-conv6".into();
    net.source =
        "the released code, runs #146: as alexnet-2012-code, with a sixth convolution over pool5".into();
    let at = net.layers.iter().position(|l| l.name == "fc6").unwrap_or(net.layers.len());
    let conv6 = conv("conv6", 256, 3, Init::Gaussian(0.03), Init::Constant(1.0)).pad(1).ceil().layer();
    net.layers.splice(at..at, [conv6, relu("relu-conv6")]);
    net
}

/// The network of the pre-training on fall 2011 (#146-2011): [`alexnet_2012_conv6`] with 1024 + 1024 linear units
/// between fc7 and the 10,921 + 10,922 classes. Both halves of each pair read both halves of what is below, and nothing
/// but their place on two GPUs tells them apart: one layer of 2048 and one of 21,843 compute the same. Its start is that of
/// fc8.
pub fn alexnet_2012_conv6_bottleneck(classes: usize) -> Network {
    let mut net = alexnet_2012_conv6(classes);
    net.name = "alexnet-2012-conv6-bottleneck".into();
    net.source =
        "the released code, run #146-2011: as alexnet-2012-conv6, with a linear bottleneck of 1024 + 1024 \
                  before the classes"
            .into();
    let last = net.layers.len().saturating_sub(1);
    net.layers.insert(last, linear("bottleneck", 2048, Init::Gaussian(0.01), Init::Constant(0.0)));
    net
}

/// AlexNet with batch normalization in place of local response normalization, as it is used with large batches:
/// [`caffenet`] with batch normalization where the two local ones were (after pool1 and pool2) and after conv3, conv4
/// and conv5, there before the ReLU as Ioffe and Szegedy place it (arXiv 1502.03167). Filters, groups and starts are
/// CaffeNet's; biases start at 0, because the normalization has a shift of its own.
pub fn alexnet_bn(classes: usize) -> Network {
    let norm = |name: &str| layer(name, Op::BatchNorm(BatchNorm { eps: 1e-5, momentum: 0.1 }));
    let mut net = caffenet(classes);
    net.name = "alexnet-bn".into();
    net.source =
        "caffenet with batch normalization after pool1, pool2, conv3, conv4 and conv5 in place of its norms"
            .into();
    let mut layers: Vec<Layer> = Vec::new();
    for mut layer in std::mem::take(&mut net.layers) {
        match &mut layer.op {
            Op::Conv(c) => c.bias = Init::Constant(0.0),
            Op::Linear(l) => l.bias = Init::Constant(0.0),
            _ => {}
        }
        let convolution = ["conv3", "conv4", "conv5"].iter().position(|name| layer.name == *name);
        layers.push(match layer.op {
            Op::Lrn(_) => norm(&layer.name),
            _ => layer,
        });
        layers.extend(convolution.map(|i| norm(["norm3", "norm4", "norm5"][i])));
    }
    net.layers = layers;
    net
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_where_the_sources_have_them() {
        let names = |net: Network| net.layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>().join(" ");
        let conv6 = names(alexnet_2012_conv6(10));
        assert!(
            conv6.ends_with("pool5 relu5 conv6 relu-conv6 fc6 relu6 drop6 fc7 relu7 drop7 fc8"),
            "{conv6}"
        );
        let bottleneck = names(alexnet_2012_conv6_bottleneck(10));
        assert!(bottleneck.ends_with("drop7 bottleneck fc8"), "{bottleneck}");
        let bn = names(alexnet_bn(10));
        assert!(bn.starts_with("conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 conv3 norm3 relu3"), "{bn}");
        assert!(bn.contains("conv5 norm5 relu5 pool5 fc6"));
    }
}
