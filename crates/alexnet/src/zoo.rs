//! Every published form of the network, spelled layer by layer as its source spells it.
//!
//! Sources: the paper (Krizhevsky, Sutskever, Hinton, NIPS 2012); the released code of 2012 (runs #145 and
//! #145-half, `layers/layers-145*.cfg`); cuda-convnet2 (2014, `layers-imagenet-1gpu.cfg`); BVLC Caffe
//! (`models/*/train_val.prototxt`); torchvision (`models/alexnet.py`); Zeiler and Fergus (arXiv 1311.2901, figure 3).

mod later;

pub use later::{alexnet_2012_conv6, alexnet_2012_conv6_bottleneck, alexnet_bn};

use crate::error::{Error, Result, nearest};
use crate::net::{
    Activation, Conv, Dropout, Init, Layer, Linear, Loss, Lrn, Network, Op, Pad, Pool, PoolKind, Rounding,
    Shape, SpatialLrn, Ties,
};

/// Makes one network of the zoo for a number of classes.
type Maker = fn(usize) -> Network;

/// Names, makers and numbers of classes, in the order of the list that the program prints.
const ZOO: [(&str, Maker, usize); 12] = [
    ("alexnet-2012", alexnet_2012, IMAGENET_CLASSES),
    ("alexnet-2012-code", alexnet_2012_code, IMAGENET_CLASSES),
    ("alexnet-2012-half", alexnet_2012_half, IMAGENET_CLASSES),
    ("alexnet-2012-conv6", alexnet_2012_conv6, FALL_2009_CLASSES),
    ("alexnet-2012-conv6-bottleneck", alexnet_2012_conv6_bottleneck, FALL_2011_CLASSES),
    ("alexnet-2014", alexnet_2014, IMAGENET_CLASSES),
    ("caffe-alexnet", caffe_alexnet, IMAGENET_CLASSES),
    ("caffenet", caffenet, IMAGENET_CLASSES),
    ("alexnet-bn", alexnet_bn, IMAGENET_CLASSES),
    ("torchvision", torchvision, IMAGENET_CLASSES),
    ("zfnet", zfnet, IMAGENET_CLASSES),
    // As many as the generator draws.
    ("alexnet-mini", alexnet_mini, 10),
];

/// The number of classes of ImageNet's challenge, which all published networks were made for.
pub const IMAGENET_CLASSES: usize = 1000;

/// The number of classes of ImageNet's release of fall 2009, as the paper's authors used it (§6, footnote).
pub const FALL_2009_CLASSES: usize = 10_184;

/// The number of classes of ImageNet's release of fall 2011, as the released code's pre-training used it.
pub const FALL_2011_CLASSES: usize = 21_843;

/// The names that [`by_name`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ZOO.iter().map(|&(name, ..)| name)
}

/// Every network, for the classes that it was published for.
pub fn all() -> Vec<Network> {
    ZOO.iter().map(|&(_, make, classes)| make(classes)).collect()
}

/// The network of this name for this many classes.
///
/// # Errors
/// If there is none; the message has the nearest name.
pub fn by_name(name: &str, classes: usize) -> Result<Network> {
    if let Some((_, make, _)) = ZOO.iter().find(|&&(n, ..)| n == name) {
        return Ok(make(classes));
    }
    let hint = match nearest(name, names()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
    };
    Err(Error::Config(format!("no network is called {name}; {hint}")))
}

/// The network as the paper's text gives it (NIPS 2012, §3 and §5): convolution, ReLU, normalization, pooling in
/// this order; α = 1e-4 not divided by n; every weight N(0, 0.01²); biases 1 in conv2, conv4, conv5 and the hidden
/// fully connected layers. Normalization stays within each of the two towers. The 224-pixel input is read with an
/// overhang of three zero rows and columns, as in the code (the text gives no padding).
pub fn alexnet_2012(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, false, 2);
    let w = Init::Gaussian(0.01);
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    Network {
        name: "alexnet-2012".into(),
        source: "the paper's text (NIPS 2012 §3, §5): conv-ReLU-norm-pool, two towers, α not divided by n"
            .into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 96, 11, w, zero).stride(4).ceil().layer(),
            relu("relu1"),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            conv("conv2", 256, 5, w, one).pad(2).groups(2).layer(),
            relu("relu2"),
            norm("norm2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            conv("conv3", 384, 3, w, zero).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 384, 3, w, one).pad(1).groups(2).layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w, one).pad(1).groups(2).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            linear("fc6", 4096, w, one),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 4096, w, one),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, w, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// The network as it was run (#145, whose logged errors are the paper's): norm1, pool1 and then ReLU; α divided
/// by n; a second normalization after conv2, over 5×5 positions within each map; conv3–conv5 start with
/// deviation 0.03; conv5 is pooled before its ReLU. All convolutions round up; only conv1 overhangs its input.
pub fn alexnet_2012_code(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, true, 2);
    let (w01, w03) = (Init::Gaussian(0.01), Init::Gaussian(0.03));
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    Network {
        name: "alexnet-2012-code".into(),
        source: "the released code, run #145: norm-pool-ReLU, α/n, second norm after conv2, conv3-5 std .03"
            .into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 96, 11, w01, zero).stride(4).ceil().layer(),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            relu("relu1"),
            conv("conv2", 256, 5, w01, one).pad(2).groups(2).ceil().layer(),
            relu("relu2"),
            norm("norm2"),
            spatial_lrn("cnorm2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            conv("conv3", 384, 3, w03, zero).pad(1).ceil().layer(),
            relu("relu3"),
            conv("conv4", 384, 3, w03, one).pad(1).groups(2).ceil().layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w03, one).pad(1).groups(2).ceil().layer(),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            relu("relu5"),
            linear("fc6", 4096, w01, one),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 4096, w01, one),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, w01, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// One of the two columns alone (#145-half), the paper's control for grouping: half the filters in conv1–conv4,
/// while conv5 and the fully connected layers keep their width so that the parameters are about as many.
pub fn alexnet_2012_half(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, true, 1);
    let (w01, w03) = (Init::Gaussian(0.01), Init::Gaussian(0.03));
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    Network {
        name: "alexnet-2012-half".into(),
        source: "the released code, run #145-half: one column, the paper's control for two towers".into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 48, 11, w01, zero).stride(4).ceil().layer(),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            relu("relu1"),
            conv("conv2", 128, 5, w01, one).pad(2).ceil().layer(),
            relu("relu2"),
            norm("norm2"),
            spatial_lrn("cnorm2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            conv("conv3", 192, 3, w03, zero).pad(1).ceil().layer(),
            relu("relu3"),
            conv("conv4", 192, 3, w03, one).pad(1).ceil().layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w03, one).pad(1).ceil().layer(),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            relu("relu5"),
            linear("fc6", 4096, w01, one),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 4096, w01, one),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, w01, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// The one-tower network of 2014 (cuda-convnet2, `layers-imagenet-1gpu.cfg`; "One weird trick", arXiv 1404.5997):
/// no groups, 64/192/384/256/256 filters, one normalization a layer, fc8 starting with bias −7 (the logit of about
/// 1/1000, made for a logistic loss; the file itself uses softmax, and so does this network).
pub fn alexnet_2014(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, true, 1);
    let (w01, w03) = (Init::Gaussian(0.01), Init::Gaussian(0.03));
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    Network {
        name: "alexnet-2014".into(),
        source: "cuda-convnet2, layers-imagenet-1gpu.cfg: one tower, no groups, fc8 bias −7".into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 64, 11, w01, zero).stride(4).ceil().layer(),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            relu("relu1"),
            conv("conv2", 192, 5, w01, one).pad(2).ceil().layer(),
            relu("relu2"),
            norm("norm2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            conv("conv3", 384, 3, w03, zero).pad(1).ceil().layer(),
            relu("relu3"),
            conv("conv4", 256, 3, w03, one).pad(1).ceil().layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w03, one).pad(1).ceil().layer(),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            relu("relu5"),
            linear("fc6", 4096, w01, one),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 4096, w01, one),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, w01, Init::Constant(-7.0)),
        ],
        loss: Loss::Softmax,
    }
}

/// Caffe's replication (`models/bvlc_alexnet`): 227-pixel input, the paper's order, normalization over all maps
/// with k = 1 and α/n, biases 0.1 (its readme: with 1 the loss stayed flat), deviation 0.005 in fc6 and fc7.
pub fn caffe_alexnet(classes: usize) -> Network {
    let norm = |name| lrn(name, 1.0, 1e-4, true, 1);
    let (w01, w005) = (Init::Gaussian(0.01), Init::Gaussian(0.005));
    let (zero, tenth) = (Init::Constant(0.0), Init::Constant(0.1));
    Network {
        name: "caffe-alexnet".into(),
        source: "BVLC Caffe, models/bvlc_alexnet: 227 input, conv-ReLU-norm-pool, norm over all maps, k 1"
            .into(),
        input: Shape::new(3, 227, 227),
        layers: vec![
            conv("conv1", 96, 11, w01, zero).stride(4).layer(),
            relu("relu1"),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::First),
            conv("conv2", 256, 5, w01, tenth).pad(2).groups(2).layer(),
            relu("relu2"),
            norm("norm2"),
            max_pool("pool2", Rounding::Ceil, Ties::First),
            conv("conv3", 384, 3, w01, zero).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 384, 3, w01, tenth).pad(1).groups(2).layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w01, tenth).pad(1).groups(2).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Ceil, Ties::First),
            linear("fc6", 4096, w005, tenth),
            relu("relu6"),
            dropout("drop6", true),
            linear("fc7", 4096, w005, tenth),
            relu("relu7"),
            dropout("drop7", true),
            linear("fc8", classes, w01, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// Caffe's reference network (`models/bvlc_reference_caffenet`): [`caffe_alexnet`] with pooling before
/// normalization and biases 1 as in the paper.
pub fn caffenet(classes: usize) -> Network {
    let norm = |name| lrn(name, 1.0, 1e-4, true, 1);
    let (w01, w005) = (Init::Gaussian(0.01), Init::Gaussian(0.005));
    let (zero, one) = (Init::Constant(0.0), Init::Constant(1.0));
    Network {
        name: "caffenet".into(),
        source: "BVLC Caffe, models/bvlc_reference_caffenet: as caffe-alexnet, pooling before norm, biases 1"
            .into(),
        input: Shape::new(3, 227, 227),
        layers: vec![
            conv("conv1", 96, 11, w01, zero).stride(4).layer(),
            relu("relu1"),
            max_pool("pool1", Rounding::Ceil, Ties::First),
            norm("norm1"),
            conv("conv2", 256, 5, w01, one).pad(2).groups(2).layer(),
            relu("relu2"),
            max_pool("pool2", Rounding::Ceil, Ties::First),
            norm("norm2"),
            conv("conv3", 384, 3, w01, zero).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 384, 3, w01, one).pad(1).groups(2).layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w01, one).pad(1).groups(2).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Ceil, Ties::First),
            linear("fc6", 4096, w005, one),
            relu("relu6"),
            dropout("drop6", true),
            linear("fc7", 4096, w005, one),
            relu("relu7"),
            dropout("drop7", true),
            linear("fc8", classes, w01, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// torchvision's network (`models/alexnet.py`): the filters of [`alexnet_2014`], conv1 padded by 2 on every side,
/// no normalization, dropout on the inputs of fc6 and fc7, PyTorch's default start. Its adaptive 6×6 average
/// pooling is the identity at 224 pixels and is left out.
pub fn torchvision(classes: usize) -> Network {
    let u = Init::FanIn;
    Network {
        name: "torchvision".into(),
        source: "torchvision, models/alexnet.py: one tower, conv1 pad 2, no norm, dropout before fc6 and fc7"
            .into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 64, 11, u, u).stride(4).pad(2).layer(),
            relu("relu1"),
            max_pool("pool1", Rounding::Floor, Ties::First),
            conv("conv2", 192, 5, u, u).pad(2).layer(),
            relu("relu2"),
            max_pool("pool2", Rounding::Floor, Ties::First),
            conv("conv3", 384, 3, u, u).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 256, 3, u, u).pad(1).layer(),
            relu("relu4"),
            conv("conv5", 256, 3, u, u).pad(1).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Floor, Ties::First),
            dropout("drop6", true),
            linear("fc6", 4096, u, u),
            relu("relu6"),
            dropout("drop7", true),
            linear("fc7", 4096, u, u),
            relu("relu7"),
            linear("fc8", classes, u, u),
        ],
        loss: Loss::Softmax,
    }
}

/// Zeiler and Fergus's network (arXiv 1311.2901, figure 3): 7×7 filters with stride 2 in conv1, stride 2 in conv2,
/// no groups, pooling before normalization. Sizes 110, 55 and 13 need rounding up. The paper gives no
/// normalization constants; these are those of [`alexnet_2014`].
pub fn zfnet(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, true, 1);
    let (w, zero) = (Init::Gaussian(0.01), Init::Constant(0.0));
    Network {
        name: "zfnet".into(),
        source: "Zeiler and Fergus, arXiv 1311.2901, figure 3: 7×7 stride 2, then 5×5 stride 2, no groups"
            .into(),
        input: Shape::new(3, 224, 224),
        layers: vec![
            conv("conv1", 96, 7, w, zero).stride(2).ceil().layer(),
            relu("relu1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            norm("norm1"),
            conv("conv2", 256, 5, w, zero).stride(2).ceil().layer(),
            relu("relu2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            norm("norm2"),
            conv("conv3", 384, 3, w, zero).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 384, 3, w, zero).pad(1).layer(),
            relu("relu4"),
            conv("conv5", 256, 3, w, zero).pad(1).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            linear("fc6", 4096, w, zero),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 4096, w, zero),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, w, zero),
        ],
        loss: Loss::Softmax,
    }
}

/// The form of [`alexnet_2012`] (two towers, groups, normalization within towers, overlapping pooling, dropout) at
/// small width for 64-pixel pictures: 14 million multiply-adds, for demonstrations and tests on a few cores.
/// Deviations are √(2 / fan-in), in fc8 1/√fan-in: with 0.01 the signal of so narrow a network dies out before fc8.
pub fn alexnet_mini(classes: usize) -> Network {
    let norm = |name| lrn(name, 2.0, 1e-4, false, 2);
    let w = |fan_in: f64| Init::Gaussian((2.0 / fan_in).sqrt());
    let zero = Init::Constant(0.0);
    Network {
        name: "alexnet-mini".into(),
        source: "this project: the form of alexnet-2012 at small width for 64-pixel pictures".into(),
        input: Shape::new(3, 64, 64),
        layers: vec![
            conv("conv1", 32, 5, w(75.0), zero).stride(2).ceil().layer(),
            relu("relu1"),
            norm("norm1"),
            max_pool("pool1", Rounding::Ceil, Ties::All),
            conv("conv2", 64, 5, w(400.0), zero).pad(2).groups(2).layer(),
            relu("relu2"),
            norm("norm2"),
            max_pool("pool2", Rounding::Ceil, Ties::All),
            conv("conv3", 96, 3, w(576.0), zero).pad(1).layer(),
            relu("relu3"),
            conv("conv4", 96, 3, w(432.0), zero).pad(1).groups(2).layer(),
            relu("relu4"),
            conv("conv5", 64, 3, w(432.0), zero).pad(1).groups(2).layer(),
            relu("relu5"),
            max_pool("pool5", Rounding::Ceil, Ties::All),
            linear("fc6", 256, w(576.0), zero),
            relu("relu6"),
            dropout("drop6", false),
            linear("fc7", 256, w(256.0), zero),
            relu("relu7"),
            dropout("drop7", false),
            linear("fc8", classes, Init::Gaussian(1.0 / 16.0), zero),
        ],
        loss: Loss::Softmax,
    }
}

/// A convolution being spelled: stride 1, no padding, one group, rounding down unless said otherwise.
struct ConvSpelling {
    name: &'static str,
    conv: Conv,
}

fn conv(name: &'static str, filters: usize, kernel: usize, weight: Init, bias: Init) -> ConvSpelling {
    let (pad, rounding) = (Pad::default(), Rounding::Floor);
    ConvSpelling { name, conv: Conv { filters, kernel, stride: 1, pad, groups: 1, rounding, weight, bias } }
}

impl ConvSpelling {
    fn stride(mut self, pixels: usize) -> Self {
        self.conv.stride = pixels;
        self
    }

    fn pad(mut self, pixels: usize) -> Self {
        self.conv.pad = Pad { before: pixels, after: pixels };
        self
    }

    fn groups(mut self, groups: usize) -> Self {
        self.conv.groups = groups;
        self
    }

    fn ceil(mut self) -> Self {
        self.conv.rounding = Rounding::Ceil;
        self
    }

    fn layer(self) -> Layer {
        layer(self.name, Op::Conv(self.conv))
    }
}

fn layer(name: &str, op: Op) -> Layer {
    Layer { name: name.into(), op }
}

fn relu(name: &str) -> Layer {
    layer(name, Op::Activation(Activation::Relu))
}

/// Over five maps with β = 0.75, as in every source.
fn lrn(name: &str, k: f64, alpha: f64, alpha_div_n: bool, towers: usize) -> Layer {
    layer(name, Op::Lrn(Lrn { size: 5, k, alpha, alpha_div_n, beta: 0.75, towers }))
}

/// The second normalization after conv2 in #145: over 5×5 positions, α = 1e-3 / 25, k = 1.
fn spatial_lrn(name: &str) -> Layer {
    layer(name, Op::SpatialLrn(SpatialLrn { size: 5, k: 1.0, alpha: 1e-3, alpha_div_n: true, beta: 0.75 }))
}

/// Maxima over 3×3 windows two pixels apart, as in every source (the paper's §3.4).
fn max_pool(name: &str, rounding: Rounding, ties: Ties) -> Layer {
    layer(name, Op::Pool(Pool { kind: PoolKind::Max, size: 3, stride: 2, rounding, ties }))
}

fn linear(name: &str, outputs: usize, weight: Init, bias: Init) -> Layer {
    layer(name, Op::Linear(Linear { outputs, weight, bias }))
}

/// With rate 0.5, as in every source.
fn dropout(name: &str, inverted: bool) -> Layer {
    layer(name, Op::Dropout(Dropout { rate: 0.5, inverted }))
}

#[cfg(test)]
mod tests;
