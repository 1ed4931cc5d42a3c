//! The reference behind the contract that all executors keep.

use super::{Mode, Reference, ops::Real, ops::loss};
use crate::exec::contract::{Batch, Executor, InputLayout, Params, StepReport, StepSettings};
use alexnet_kernels::threads::Threads;

impl<T: Real> Reference<T> {
    /// Computes every layer for a batch in the layout that the contract promises, (N, H, W, C).
    fn forward_batch(&mut self, batch: &Batch, mode: Mode) {
        let layout = self.input_layout();
        let shape = layout.shape;
        assert!(
            batch.count <= self.batch && batch.input.len() == layout.len(),
            "the batch does not fit the plan"
        );
        let input = batch.input.as_f32();
        for n in 0..batch.count {
            for (i, x) in self.activations[0][n * shape.len()..][..shape.len()].iter_mut().enumerate() {
                let (c, row, column) = (i / (shape.h * shape.w), i / shape.w % shape.h, i % shape.w);
                *x = T::of(f64::from(input[layout.offset(n, c, row, column)]));
            }
        }
        self.picture_weights.clear();
        match mode {
            Mode::Train { .. } => self.picture_weights.extend_from_slice(batch.weights),
            Mode::Test => self.picture_weights.resize(batch.count, 1.0),
        }
        self.layers_forward(batch.count, mode);
    }

    /// A copy of `tensors` as f32, with the parameters' names.
    fn export(&self, tensors: &[Vec<T>]) -> Params {
        let mut params = self.names.clone();
        for (param, tensor) in params.0.iter_mut().zip(tensors) {
            param.data.iter_mut().zip(tensor).for_each(|(to, from)| *to = from.as_f64() as f32);
        }
        params
    }

    /// The values of `params`, which must be this network's.
    fn import(&self, params: &Params) -> Vec<Vec<T>> {
        let key = |p: &Params| p.0.iter().map(|p| (p.name.clone(), p.shape.clone())).collect::<Vec<_>>();
        assert_eq!(
            key(params),
            key(&self.names),
            "these are not the parameters of network {}",
            self.net.name
        );
        params.0.iter().map(|p| p.data.iter().map(|&x| T::of(f64::from(x))).collect()).collect()
    }
}

impl<T: Real> Executor for Reference<T> {
    fn input_layout(&self) -> InputLayout {
        InputLayout::nhwc(self.batch, self.net.input)
    }

    fn describe(&self) -> String {
        let mut text = format!(
            "{}: {}, batch {}, {} bytes; every operation by its definition\n",
            self.net.name,
            self.kernel_name(),
            self.batch,
            self.planned_bytes()
        );
        for (i, layer) in self.net.layers[..self.layers].iter().enumerate() {
            let (from, to) = (self.shapes[i], self.shapes[i + 1]);
            text += &format!("{:8} {:12} {from} -> {to}\n", layer.name, layer.op.kind());
        }
        text
    }

    fn threads(&mut self) -> &mut Threads {
        &mut self.threads
    }

    fn kernel_name(&self) -> String {
        format!("reference {}", T::NAME)
    }

    fn precision(&self) -> &'static str {
        T::NAME
    }

    fn value_bytes(&self) -> usize {
        size_of::<T>()
    }

    fn planned_bytes(&self) -> usize {
        let tensors =
            [&self.params, &self.momentum, &self.param_gradients, &self.activations, &self.gradients];
        let elements: usize = tensors.into_iter().flatten().map(Vec::len).sum();
        (elements + self.probabilities.len()) * size_of::<T>()
    }

    fn set_params(&mut self, params: &Params) {
        self.params = self.import(params);
    }

    fn params(&self) -> Params {
        self.export(&self.params)
    }

    fn set_momentum(&mut self, momentum: &Params) {
        self.momentum = self.import(momentum);
    }

    fn momentum(&self) -> Params {
        self.export(&self.momentum)
    }

    fn train_step(&mut self, batch: Batch, settings: &StepSettings) -> StepReport {
        let mode = Mode::Train { seed: settings.seed, step: settings.step };
        self.hold_statistics(settings.rates);
        self.forward_batch(&batch, mode);
        self.backward(batch.labels, batch.weights, mode);
        self.update(settings);
        let logits = self.logits(batch.count);
        StepReport {
            loss: self.loss(batch.labels, batch.weights),
            top1_wrong: loss::top1_wrong(self.net.classes(), logits, batch.labels, batch.weights),
            weight: batch.weights.iter().map(|&w| f64::from(w)).sum(),
            nonfinite: self.first_nonfinite(batch.count),
        }
    }

    fn infer(&mut self, batch: Batch, output: &mut [f32]) {
        self.forward_batch(&batch, Mode::Test);
        let len = batch.count * self.output_len();
        assert_eq!(output.len(), len, "the output is not (count, outputs)");
        if !self.truncated {
            let z = &self.activations[self.layers][..len];
            loss::probabilities(self.net.loss, self.net.classes(), z, &mut self.probabilities[..len]);
        }
        let values = if self.truncated { &self.activations[self.layers] } else { &self.probabilities };
        for (to, from) in output.iter_mut().zip(values) {
            *to = from.as_f64() as f32;
        }
    }

    fn output_len(&self) -> usize {
        self.shapes[self.layers].len()
    }
}
