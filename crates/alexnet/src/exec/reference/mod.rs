//! The reference executor: the operations of [`crate::ops`] one after another in the order of the network, each
//! as it is defined, in one thread. It is the specification of every other executor, and shows what they are
//! compared by: the activation of every layer, its gradient, and the gradient of every parameter, in f32 or f64.

mod contract;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::exec::contract::{Params, Rate, Role, StepSettings};
use crate::net::{Network, Op, Shape};
use crate::ops::update::{self, Rule};
use crate::ops::{self, Real, activation, batch_norm, conv, dropout, linear, loss, lrn, pool};
use alexnet_kernels::threads::Threads;

/// Whether dropout draws its masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does, for this step of the run with this seed.
    Train {
        /// The run's seed.
        seed: u64,
        /// The step, counted over the whole run.
        step: u64,
    },
    /// It does not: the network as it is used.
    Test,
}

/// A network with its parameters and everything that one step computes. All tensors are canonical.
pub struct Reference<T> {
    net: Network,
    /// The largest number of pictures in a batch.
    batch: usize,
    /// The number of layers that are computed.
    layers: usize,
    /// Made to stop after a given layer, and so not for training.
    truncated: bool,
    /// `shapes[i]` is what layer i reads, `shapes[i + 1]` what it writes.
    shapes: Vec<Shape>,
    /// Names and shapes of the parameters; the data of these is not used.
    names: Params,
    /// For each layer the position of its weights among the parameters; its biases follow them.
    weight: Vec<Option<usize>>,
    params: Vec<Vec<T>>,
    momentum: Vec<Vec<T>>,
    param_gradients: Vec<Vec<T>>,
    /// `activations[i]` is what layer i reads, `activations[i + 1]` what it writes.
    activations: Vec<Vec<T>>,
    /// Gradients of `activations`; that of the pictures themselves is not computed.
    gradients: Vec<Vec<T>>,
    probabilities: Vec<T>,
    /// The weight of each picture of the last forward pass; batch normalizations count by them.
    picture_weights: Vec<f32>,
    /// For each batch normalization M, mean and variance of the last forward pass in training.
    statistics: Vec<(f64, Vec<T>, Vec<T>)>,
    /// For each layer whether it is a batch normalization that is used in training as at test time.
    held: Vec<bool>,
    rule: Rule,
    /// The one that computes, for other work.
    threads: Threads,
}

impl<T: Real> Reference<T> {
    /// An executor of `net` with zero weights for batches of at most `batch` pictures. With `last` it stops after
    /// the layer at this position and yields its activation instead of probabilities; then it cannot train.
    ///
    /// # Errors
    /// As [`Network::trace`]; if there is no layer `last`; if `batch` is zero.
    pub fn new(net: &Network, batch: usize, last: Option<usize>) -> Result<Self> {
        let count = net.layers.len();
        if batch == 0 {
            return Err(Error::Config("a batch of 0 pictures cannot be planned; the smallest is 1".into()));
        }
        if let Some(last) = last.filter(|&last| last >= count) {
            return Err(Error::Config(format!(
                "network {} has no layer {last}: it has {count} layers",
                net.name
            )));
        }
        let layers = last.map_or(count, |last| last + 1);
        let shapes: Vec<Shape> =
            std::iter::once(net.input).chain(net.trace()?.iter().map(|t| t.output)).collect();
        let names = Params::zeros(net)?;
        let zeros: Vec<Vec<T>> = names.0.iter().map(|p| vec![T::zero(); p.data.len()]).collect();
        let activations: Vec<Vec<T>> =
            shapes[..=layers].iter().map(|shape| vec![T::zero(); batch * shape.len()]).collect();
        Ok(Reference {
            batch,
            layers,
            truncated: last.is_some(),
            weight: (0..count).map(|layer| names.0.iter().position(|p| p.layer == layer)).collect(),
            params: zeros.clone(),
            momentum: zeros.clone(),
            param_gradients: zeros,
            gradients: activations.clone(),
            activations,
            probabilities: vec![T::zero(); batch * net.classes()],
            picture_weights: vec![1.0; batch],
            statistics: (0..count)
                .map(|i| match net.layers[i].op {
                    Op::BatchNorm(_) => (0.0, vec![T::zero(); shapes[i].c], vec![T::zero(); shapes[i].c]),
                    _ => (0.0, vec![], vec![]),
                })
                .collect(),
            held: vec![false; count],
            rule: Rule::default(),
            threads: Threads::new(1),
            net: net.clone(),
            shapes,
            names,
        })
    }

    /// With additions to the update rule.
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Takes over which batch normalizations are frozen: those whose statistics have the rate 0. They normalize by their
    /// running statistics in training too.
    pub fn hold_statistics(&mut self, rates: &[Rate]) {
        assert_eq!(rates.len(), self.params.len(), "one rate a parameter tensor");
        for (held, (layer, weight)) in self.held.iter_mut().zip(self.net.layers.iter().zip(&self.weight)) {
            *held = matches!((&layer.op, weight), (Op::BatchNorm(_), Some(t)) if rates[t + 2].lr == 0.0);
        }
    }

    /// The parameters, in the order of [`Params`].
    pub fn params_mut(&mut self) -> &mut [Vec<T>] {
        &mut self.params
    }

    /// The gradients of the mean loss with respect to the parameters, as the last [`Reference::backward`] left
    /// them, in the order of [`Params`].
    pub fn param_gradients(&self) -> &[Vec<T>] {
        &self.param_gradients
    }

    /// What each layer wrote in the last [`Reference::forward`], first to last: (batch, C, H, W), of which the
    /// pictures of the last batch count.
    pub fn activations(&self) -> &[Vec<T>] {
        &self.activations[1..]
    }

    /// The gradients of the mean loss with respect to [`Reference::activations`], as the last
    /// [`Reference::backward`] left them.
    pub fn activation_gradients(&self) -> &[Vec<T>] {
        &self.gradients[1..]
    }

    /// Computes every layer for the pictures of `input`.
    pub fn forward(
        &mut self,
        input: &[T], // (N, C, H, W)
        mode: Mode,
    ) {
        let n = input.len() / self.shapes[0].len();
        assert!(n <= self.batch && n * self.shapes[0].len() == input.len(), "the input is not (N, C, H, W)");
        self.activations[0][..input.len()].copy_from_slice(input);
        self.picture_weights.clear();
        self.picture_weights.resize(n, 1.0);
        self.layers_forward(n, mode);
    }

    /// Computes every layer for the first `n` pictures of `activations[0]`.
    fn layers_forward(&mut self, n: usize, mode: Mode) {
        for i in 0..self.layers {
            self.layer_forward(i, n, mode);
        }
    }

    fn layer_forward(&mut self, i: usize, n: usize, mode: Mode) {
        let (shape, len_y) = (self.shapes[i], n * self.shapes[i + 1].len());
        let (below, above) = self.activations.split_at_mut(i + 1);
        let (x, y) = (&below[i][..n * shape.len()], &mut above[0][..len_y]);
        let tensors = self.weight[i].map(|t| (&self.params[t], &self.params[t + 1]));
        match (&self.net.layers[i].op, tensors) {
            (Op::Conv(c), Some((w, b))) => conv::forward(&conv::Geometry::new(n, shape, c), x, w, b, y),
            (Op::Linear(l), Some((w, b))) => {
                linear::forward(&linear::Geometry { n, c: shape.len(), k: l.outputs }, x, w, b, y)
            }
            (Op::Activation(f), _) => activation::forward(*f, x, y),
            (Op::Lrn(l), _) => lrn::forward(&lrn::Geometry::across(n, shape, l), x, y),
            (Op::SpatialLrn(l), _) => lrn::forward(&lrn::Geometry::within(n, shape, l), x, y),
            (Op::Pool(p), _) => pool::forward(&pool::Geometry::new(n, shape, p), x, y),
            (Op::Dropout(d), _) => match mode {
                Mode::Train { seed, step } => {
                    dropout::forward(d, &dropout::Mask::new(d.rate, seed, step, i), x, y)
                }
                Mode::Test => dropout::forward_test(d, x, y),
            },
            (Op::BatchNorm(norm), Some((gamma, beta))) => {
                let g = batch_norm::Geometry::new(n, shape, norm);
                let t = self.weight[i].unwrap_or_default();
                match mode {
                    Mode::Train { .. } if !self.held[i] => {
                        let (count, mean, variance) = &mut self.statistics[i];
                        *count = batch_norm::statistics(&g, x, &self.picture_weights[..n], mean, variance);
                        batch_norm::forward(&g, x, mean, variance, gamma, beta, y);
                    }
                    _ => {
                        let (mean, variance) = (&self.params[t + 2], &self.params[t + 3]);
                        batch_norm::forward(&g, x, mean, variance, gamma, beta, y);
                    }
                }
            }
            (Op::Conv(_) | Op::Linear(_) | Op::BatchNorm(_), None) => {
                unreachable!("trace gives these layers parameters")
            }
        }
    }

    /// The weighted mean loss of the batch of the last [`Reference::forward`].
    pub fn loss(
        &self,
        labels: &[u32],  // (N)
        weights: &[f32], // (N)
    ) -> f64 {
        loss::forward(self.net.loss, self.net.classes(), self.logits(labels.len()), labels, weights)
    }

    /// The gradients of the weighted mean loss of the batch of the last [`Reference::forward`], which had this
    /// `mode`, with respect to every activation and every parameter.
    pub fn backward(
        &mut self,
        labels: &[u32],  // (N)
        weights: &[f32], // (N)
        mode: Mode,
    ) {
        assert!(!self.truncated, "an executor made for inference has no loss");
        let (n, classes) = (labels.len(), self.net.classes());
        let (z, p) = (&self.activations[self.layers], &mut self.probabilities[..n * classes]);
        loss::probabilities(self.net.loss, classes, &z[..n * classes], p);
        loss::backward(classes, p, labels, weights, &mut self.gradients[self.layers][..n * classes]);
        for i in (0..self.layers).rev() {
            self.layer_backward(i, n, mode);
        }
    }

    fn layer_backward(&mut self, i: usize, n: usize, mode: Mode) {
        let (shape, len_y) = (self.shapes[i], n * self.shapes[i + 1].len());
        let len_x = n * shape.len();
        let (below, above) = self.gradients.split_at_mut(i + 1);
        let (dx, dy) = (&mut below[i][..len_x], &above[0][..len_y]);
        let (x, y) = (&self.activations[i][..len_x], &self.activations[i + 1][..len_y]);
        let mut tensors = None;
        if let Some(t) = self.weight[i] {
            let (dw, db) = self.param_gradients.split_at_mut(t + 1);
            tensors = Some((&self.params[t], &mut dw[t], &mut db[0]));
        }
        match (&self.net.layers[i].op, tensors) {
            (Op::Conv(c), Some((w, dw, db))) => {
                let g = conv::Geometry::new(n, shape, c);
                conv::backward_weight(&g, x, dy, dw, db);
                // The pictures are not learnt, so that their gradient is not needed.
                if i > 0 {
                    conv::backward_input(&g, dy, w, dx);
                }
            }
            (Op::Linear(l), Some((w, dw, db))) => {
                let g = linear::Geometry { n, c: shape.len(), k: l.outputs };
                linear::backward_weight(&g, x, dy, dw, db);
                if i > 0 {
                    linear::backward_input(&g, dy, w, dx);
                }
            }
            (Op::Activation(f), _) => activation::backward(*f, x, y, dy, dx),
            (Op::Lrn(l), _) => lrn::backward(&lrn::Geometry::across(n, shape, l), x, y, dy, dx),
            (Op::SpatialLrn(l), _) => lrn::backward(&lrn::Geometry::within(n, shape, l), x, y, dy, dx),
            (Op::Pool(p), _) => pool::backward(&pool::Geometry::new(n, shape, p), x, y, dy, dx),
            (Op::Dropout(d), _) => match mode {
                Mode::Train { seed, step } => {
                    dropout::backward(d, &dropout::Mask::new(d.rate, seed, step, i), dy, dx)
                }
                Mode::Test => dropout::forward_test(d, dy, dx),
            },
            (Op::BatchNorm(norm), Some((gamma, dgamma, dbeta))) => {
                let g = batch_norm::Geometry::new(n, shape, norm);
                let t = self.weight[i].unwrap_or_default();
                // At test time, and of a frozen layer, the statistics are constants, in which no picture has a part.
                let nobody = vec![0.0; n];
                let (mean, variance, weights) = match mode {
                    Mode::Train { .. } if !self.held[i] => {
                        (&self.statistics[i].1, &self.statistics[i].2, &self.picture_weights[..n])
                    }
                    _ => (&self.params[t + 2], &self.params[t + 3], &nobody[..]),
                };
                batch_norm::backward(&g, x, dy, weights, mean, variance, gamma, dgamma, dbeta, dx);
            }
            (Op::Conv(_) | Op::Linear(_) | Op::BatchNorm(_), None) => {
                unreachable!("trace gives these layers parameters")
            }
        }
    }

    /// Moves the parameters by the gradients of the last [`Reference::backward`], as the paper writes it (§5):
    ///
    /// v ← μ·v − wd·ε·w − ε·ḡ,  w ← w + v
    ///
    /// with the additions of the [`Rule`]. A tensor whose rate is zero keeps its values and its momentum. The running
    /// statistics of batch normalizations that are not frozen move by what the last forward pass in training found.
    pub fn update(&mut self, settings: &StepSettings) {
        assert_eq!(settings.rates.len(), self.params.len(), "one rate a parameter tensor");
        let learned = |t: usize| self.names.0[t].role != Role::Statistic;
        let moving = settings.rates.iter().enumerate().filter(|(_, rate)| rate.lr != 0.0);
        for (t, rate) in moving.filter(|&(t, _)| learned(t)) {
            let (mut lr, decay) = (f64::from(rate.lr), f64::from(rate.decay));
            let (w, g) = (&mut self.params[t], &self.param_gradients[t]);
            if let Some(lars) = self.rule.lars {
                lr = lars.rate(lr, decay, update::norm_squared(w).sqrt(), update::norm_squared(g).sqrt());
            }
            update::sgd(lr, decay, f64::from(settings.momentum), g, w, &mut self.momentum[t]);
            let param = &self.names.0[t];
            if let (Some(limit), [filters, _, _, _]) = (self.rule.filter_rms, &param.shape[..]) {
                let len = w.len() / filters;
                w.chunks_exact_mut(len).for_each(|filter| update::limit_rms(limit, filter));
            }
        }
        for (i, layer) in self.net.layers.iter().enumerate() {
            let (Op::BatchNorm(norm), Some(t)) = (&layer.op, self.weight[i]) else { continue };
            let (count, mean, variance) = &self.statistics[i];
            if *count > 0.0 && !self.held[i] {
                let (below, above) = self.params.split_at_mut(t + 3);
                batch_norm::move_statistics(norm, *count, mean, variance, &mut below[t + 2], &mut above[0]);
            }
        }
    }

    /// The first layer, in the order of computing, with a value that is not finite: forward, what it writes;
    /// backward, its gradients or its new parameters.
    fn first_nonfinite(&self, n: usize) -> Option<usize> {
        let bad = |values: &[T]| !values.iter().all(|v| v.is_finite());
        let forward =
            (0..self.layers).find(|&i| bad(&self.activations[i + 1][..n * self.shapes[i + 1].len()]));
        forward.or_else(|| {
            (0..self.layers).rev().find(|&i| {
                self.weight[i].is_some_and(|t| {
                    (t..t + 2).any(|t| bad(&self.param_gradients[t]) || bad(&self.params[t]))
                })
            })
        })
    }

    /// (N, K)
    fn logits(&self, n: usize) -> &[T] {
        &self.activations[self.layers][..n * self.shapes[self.layers].len()]
    }
}
