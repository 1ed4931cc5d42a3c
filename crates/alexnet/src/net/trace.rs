//! What follows from a network's description: whether its layers fit together, the shape of every map and parameter, and
//! the arithmetic.

use super::{BatchNorm, Conv, Layer, Linear, Lrn, Network, Op, Pool, Rounding, Shape, SpatialLrn};
use crate::error::{Error, Result};

/// One layer with everything that follows from its place in the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Traced<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// What it reads, one picture.
    pub input: Shape,
    /// What it writes, one picture.
    pub output: Shape,
    /// Shape of its weights: (K, C/G, R, S), (outputs, inputs) or (C) of a batch normalization; empty without weights.
    pub weight: Vec<usize>,
    /// Multiply-adds for one picture, padding counted as work.
    pub macs: usize,
}

impl Traced<'_> {
    /// Number of weights.
    pub fn weights(&self) -> usize {
        if self.weight.is_empty() { 0 } else { self.weight.iter().product() }
    }

    /// Number of biases: one a filter, output or normalized channel.
    pub fn biases(&self) -> usize {
        self.weight.first().copied().unwrap_or(0)
    }

    /// Weights and biases. The running statistics of a batch normalization are not counted: they are not learned.
    pub fn params(&self) -> usize {
        self.weights() + self.biases()
    }

    /// Inputs of one output element: C/G·R·S, or the inputs of a linear layer.
    pub fn fan_in(&self) -> usize {
        self.weight.iter().skip(1).product()
    }
}

/// Output size of a window of `size` moved by `stride` over `extent` pixels (padding included), or `None` if not
/// even one window fits. With `Ceil`, a window starts only where it still covers a pixel of the extent.
pub fn windows(extent: usize, size: usize, stride: usize, rounding: Rounding) -> Option<usize> {
    if size == 0 || stride == 0 || extent == 0 {
        return None;
    }
    match rounding {
        Rounding::Floor => extent.checked_sub(size).map(|d| d / stride + 1),
        Rounding::Ceil => {
            let n = extent.saturating_sub(size).div_ceil(stride) + 1;
            Some(n.min((extent - 1) / stride + 1))
        }
    }
}

/// The largest size of any kind that a network may have. It keeps sums of sizes far from overflow.
const LARGEST: usize = 1 << 24;

/// The product of sizes, or `None` if a size or the product (2^48) is beyond what any machine could hold.
fn product(sizes: &[usize]) -> Option<usize> {
    sizes.iter().try_fold(1usize, |product, &size| {
        if size > LARGEST { None } else { product.checked_mul(size).filter(|&p| p <= 1 << 48) }
    })
}

/// What a layer makes of its input: the output, the shape of its weights, and multiply-adds. Or why it cannot.
type Follows = std::result::Result<(Shape, Vec<usize>, usize), String>;

const TOO_LARGE: &str = "it is too large";

fn conv(conv: &Conv, input: Shape) -> Follows {
    let Conv { filters, kernel, stride, pad, groups, rounding, .. } = *conv;
    if groups == 0 || !input.c.is_multiple_of(groups) || !filters.is_multiple_of(groups) || filters == 0 {
        return Err(format!("{} channels and {filters} filters do not divide into {groups} groups", input.c));
    }
    if kernel > LARGEST {
        return Err(TOO_LARGE.into());
    }
    if pad.before >= kernel.max(1) || pad.after >= kernel.max(1) {
        return Err(format!("padding must be smaller than the kernel ({kernel})"));
    }
    let size = |extent| windows(extent + pad.before + pad.after, kernel, stride, rounding);
    let (Some(p), Some(q)) = (size(input.h), size(input.w)) else {
        return Err(format!("a {kernel}×{kernel} kernel with stride {stride} does not fit on {input}"));
    };
    let macs = product(&[filters, input.c / groups, kernel, kernel, p, q]).ok_or(TOO_LARGE)?;
    Ok((Shape::new(filters, p, q), vec![filters, input.c / groups, kernel, kernel], macs))
}

fn pool(pool: &Pool, input: Shape) -> Follows {
    let size = |extent| windows(extent, pool.size, pool.stride, pool.rounding);
    let (Some(p), Some(q)) = (size(input.h), size(input.w)) else {
        let Pool { size, stride, .. } = pool;
        return Err(format!("a {size}×{size} window with stride {stride} does not fit on {input}"));
    };
    Ok((Shape::new(input.c, p, q), vec![], 0))
}

fn linear(linear: &Linear, input: Shape) -> Follows {
    if linear.outputs == 0 {
        return Err("it has no outputs".into());
    }
    let macs = product(&[linear.outputs, input.len()]).ok_or(TOO_LARGE)?;
    Ok((Shape::new(linear.outputs, 1, 1), vec![linear.outputs, input.len()], macs))
}

fn lrn(lrn: &Lrn, input: Shape) -> Follows {
    if lrn.size == 0 || lrn.towers == 0 || !input.c.is_multiple_of(lrn.towers) {
        return Err(format!("{} maps do not divide into {} towers", input.c, lrn.towers));
    }
    if lrn.k.is_nan() || lrn.k <= 0.0 || lrn.alpha.is_nan() || lrn.alpha < 0.0 {
        return Err("k must be positive and alpha not negative".into());
    }
    Ok((input, vec![], 0))
}

fn spatial_lrn(lrn: &SpatialLrn, input: Shape) -> Follows {
    if lrn.size == 0 || lrn.k.is_nan() || lrn.k <= 0.0 || lrn.alpha.is_nan() || lrn.alpha < 0.0 {
        return Err("size and k must be positive, alpha not negative".into());
    }
    Ok((input, vec![], 0))
}

fn batch_norm(norm: &BatchNorm, input: Shape) -> Follows {
    if !(norm.eps > 0.0 && norm.eps.is_finite() && (0.0..=1.0).contains(&norm.momentum)) {
        return Err("eps must be positive and momentum between 0 and 1".into());
    }
    Ok((input, vec![input.c], 0))
}

impl Op {
    fn follows(&self, input: Shape) -> Follows {
        match self {
            Op::Conv(op) => conv(op, input),
            Op::Pool(op) => pool(op, input),
            Op::Linear(op) => linear(op, input),
            Op::Lrn(op) => lrn(op, input),
            Op::SpatialLrn(op) => spatial_lrn(op, input),
            Op::BatchNorm(op) => batch_norm(op, input),
            Op::Dropout(op) if !(0.0..1.0).contains(&op.rate) => {
                Err(format!("the rate {} is not in [0, 1)", op.rate))
            }
            Op::Dropout(_) | Op::Activation(_) => Ok((input, vec![], 0)),
        }
    }
}

impl Network {
    /// Every layer with its shapes, parameters and multiply-adds.
    ///
    /// # Errors
    /// If the layers do not fit together; the message names the layer.
    pub fn trace(&self) -> Result<Vec<Traced<'_>>> {
        let Shape { c, h, w } = self.input;
        if product(&[c, h, w]).is_none_or(|elements| elements == 0) {
            return Err(Error::Config(format!(
                "network {}: the input {} is empty or too large",
                self.name, self.input
            )));
        }
        let mut input = self.input;
        let mut traced = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let fail = |why| Error::Config(format!("layer {}: {why}", layer.name));
            if self.layers[..i].iter().any(|l| l.name == layer.name) {
                return Err(fail("the name is used twice".to_string()));
            }
            let (output, weight, macs) = layer.op.follows(input).map_err(fail)?;
            traced.push(Traced { layer, input, output, weight, macs });
            input = output;
        }
        match self.layers.last() {
            Some(Layer { op: Op::Linear(_), .. }) => Ok(traced),
            _ => Err(Error::Config(format!(
                "network {}: the last layer must be linear, with one output a class",
                self.name
            ))),
        }
    }

    /// Weights and biases of all layers.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn params(&self) -> Result<usize> {
        Ok(self.trace()?.iter().map(Traced::params).sum())
    }

    /// Multiply-adds of one picture's forward pass.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn macs(&self) -> Result<usize> {
        Ok(self.trace()?.iter().map(|t| t.macs).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_counts_by_both_rules() {
        // The 2012 network's first layer: 224 pixels, 11×11, stride 4 (spec §1a).
        assert_eq!(windows(224, 11, 4, Rounding::Ceil), Some(55));
        assert_eq!(windows(224, 11, 4, Rounding::Floor), Some(54));
        for n in [55, 27, 13] {
            assert_eq!(windows(n, 3, 2, Rounding::Ceil), windows(n, 3, 2, Rounding::Floor));
        }
        assert_eq!(windows(55, 2, 2, Rounding::Ceil), Some(28));
        assert_eq!(windows(110, 3, 2, Rounding::Ceil), Some(55));
        assert_eq!(windows(5, 6, 1, Rounding::Floor), None);
        // The second window would start outside the map.
        assert_eq!(windows(3, 2, 4, Rounding::Ceil), Some(1));
        assert_eq!(windows(7, 3, 0, Rounding::Ceil), None);
    }
}
