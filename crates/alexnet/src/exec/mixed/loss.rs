//! The end of the network: probabilities, loss and the gradient of the logits; or the last map, in canonical order.

use super::Mixed;
use crate::exec::contract::{Batch, StepReport};
use crate::ops::loss;
use alexnet_kernels::bf16::convert;

impl Mixed {
    /// Makes sure that the logits are rows: a network may end with something else than a linear layer.
    fn logits_from_map(&mut self, count: usize) {
        let last = self.maps.len() - 1;
        if !self.maps[last].is_empty() {
            let len = count * self.net.classes();
            let ([map], [rows]) = self.arena.split([self.maps[last]], [self.logits.first(len)]);
            convert::to_canonical(&self.layouts[last], count, map, rows);
        }
    }

    /// The loss of the batch; leaves the gradient of the last map for the backward pass.
    pub(super) fn loss(&mut self, batch: &Batch) -> StepReport {
        self.logits_from_map(batch.count);
        let classes = self.net.classes();
        let last = self.maps.len() - 1;
        let len = batch.count * classes;
        let ([z], [p, dz]) = self.arena.split(
            [self.logits.first(len)],
            [self.probabilities.first(len), self.logits_gradient.first(len)],
        );
        loss::probabilities(self.net.loss, classes, z, p);
        loss::backward(classes, p, batch.labels, batch.weights, dz);
        let pictures = z.chunks_exact(classes).zip(batch.labels).zip(batch.weights);
        let wrong = pictures.filter(|((z, label), _)| loss::top1_is_wrong(z, **label));
        let report = StepReport {
            loss: loss::forward(self.net.loss, classes, z, batch.labels, batch.weights),
            top1_wrong: wrong.map(|(_, &weight)| f64::from(weight)).sum(),
            weight: batch.weights.iter().map(|&w| f64::from(w)).sum(),
            nonfinite: None,
        };
        let ([dz], [to]) = self.arena.split([self.logits_gradient], [self.gradients[last]]);
        convert::from_rows(&mut self.ctx, classes, batch.count, dz, to);
        report
    }

    /// Copies what the plan ends with to `output`, (count, outputs).
    pub(super) fn yield_output(&mut self, count: usize, output: &mut [f32]) {
        let last = self.maps.len() - 1;
        if self.plan.ends_with_loss() {
            self.logits_from_map(count);
            let classes = self.net.classes();
            let logits = &self.arena.get(self.logits)[..count * classes];
            loss::probabilities(self.net.loss, classes, logits, output);
        } else {
            convert::to_canonical(&self.layouts[last], count, self.arena.get(self.maps[last]), output);
        }
    }
}
