//! The end of the network: probabilities, loss and the gradient of the logits; or the last map, in canonical order.

use super::Cpu;
use crate::exec::contract::{Batch, StepReport};
use crate::exec::plan::{Form, Mode};
use crate::ops::loss;

impl Cpu {
    /// The loss of the batch; leaves the gradient of the logits for the backward pass.
    pub(super) fn loss(&mut self, batch: &Batch) -> StepReport {
        let classes = self.net.classes();
        let last = self.maps.len() - 1;
        let len = batch.count * classes;
        let ([z], [p, dz]) = self.arena.split(
            [self.maps[last].first(len)],
            [self.probabilities.first(len), self.gradients[last].first(len)],
        );
        loss::probabilities(self.net.loss, classes, z, p);
        loss::backward(classes, p, batch.labels, batch.weights, dz);
        let pictures = z.chunks_exact(classes).zip(batch.labels).zip(batch.weights);
        let wrong = pictures.filter(|((z, label), _)| loss::top1_is_wrong(z, **label));
        StepReport {
            loss: loss::forward(self.net.loss, classes, z, batch.labels, batch.weights),
            top1_wrong: wrong.map(|(_, &weight)| f64::from(weight)).sum(),
            weight: batch.weights.iter().map(|&w| f64::from(w)).sum(),
            nonfinite: None,
        }
    }

    /// Copies what the plan ends with to `output`, (count, outputs).
    pub(super) fn yield_output(&mut self, count: usize, output: &mut [f32]) {
        let last = self.maps.len() - 1;
        let map = self.plan.maps[last];
        let values = self.arena.get(self.maps[last]);
        if matches!(self.plan.mode, Mode::Train { .. } | Mode::Infer { last: None }) {
            let classes = self.net.classes();
            loss::probabilities(self.net.loss, classes, &values[..count * classes], output);
            return;
        }
        match map.form {
            Form::Flat => output.copy_from_slice(&values[..output.len()]),
            _ => {
                let (shape, block) = (map.shape, self.plan.block);
                for (n, row) in output.chunks_exact_mut(shape.len()).enumerate() {
                    for (e, to) in row.iter_mut().enumerate() {
                        let (c, h, w) = (e / (shape.h * shape.w), e / shape.w % shape.h, e % shape.w);
                        *to = values
                            [(((n / block * shape.h + h) * shape.w + w) * block + n % block) * shape.c + c];
                    }
                }
            }
        }
    }
}
