//! Where the parameters lie in an executor's arena: plain f32 in canonical order, whatever the arithmetic of the products;
//! a linear layer's weights may lie in strips of columns. What an executor makes of them for its kernels (packed, rounded) is its own.

use crate::error::Result;
use crate::exec::contract::{Param, Params};
use crate::exec::plan::Plan;
use crate::net::{Network, Op};
use alexnet_kernels::arena::{Arena, Layouter, Region};
use alexnet_kernels::strips::Strips;

/// Where one parameter tensor lies, its momentum and its gradient.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    /// Its place in [`Params`], and of its rate in a step's settings.
    pub index: usize,
    /// The f32 master values.
    pub value: Region,
    /// Empty unless the plan trains.
    pub momentum: Region,
    /// The whole gradient, where the update is separate; shared by all weights, or by all other tensors.
    pub gradient: Region,
    /// Elements of one filter of a convolution; 0 for other tensors.
    pub filter_len: usize,
    /// How it lies; a tensor that is not a linear layer's weights is one row.
    pub strips: Strips,
}

/// All parameters of a network, in the order of [`Params`].
pub(super) struct Parameters {
    /// Names and shapes, without elements.
    shapes: Params,
    tensors: Vec<Tensor>,
}

impl Parameters {
    /// Reserves room for all parameters of `net`, also of layers that the plan does not reach, so that they can be given
    /// back; and, in training, for their momentum and for the largest gradients that are stored whole. `strips` says
    /// how a linear layer's weights lie, of so many outputs and inputs.
    ///
    /// # Errors
    /// As [`Network::trace`].
    pub fn reserve(
        net: &Network,
        plan: &Plan,
        strips: impl Fn(usize, usize) -> Strips,
        layouter: &mut Layouter,
    ) -> Result<Parameters> {
        let shapes = Params::shapes(net)?;
        let trains = plan.trains();
        // A separate update consumes its gradient as soon as that is there, so one region serves all weights and one all
        // vectors. The update of a linear layer's weights is fused, unless the rule needs whole gradients.
        let whole = |p: &&Param| {
            let fused = p.shape.len() > 1 && matches!(net.layers[p.layer].op, Op::Linear(_));
            trains && (!fused || plan.rule.needs_whole_gradients())
        };
        let is_vector = |p: &&Param| p.shape.len() == 1;
        let strips = |p: &Param| match p.shape[..] {
            [outputs, inputs] => strips(outputs, inputs),
            _ => Strips::whole(1, len(p)),
        };
        let room_of = |p: &Param| strips(p).len();
        let mut room = |vectors: bool| {
            let tensors = shapes.0.iter().filter(whole).filter(|p| is_vector(p) == vectors);
            layouter.reserve(tensors.map(room_of).max().unwrap_or(0))
        };
        let (weight_gradient, vector_gradient) = (room(false), room(true));
        let tensors = shapes.0.iter().enumerate().map(|(index, p)| Tensor {
            index,
            value: layouter.reserve(room_of(p)),
            momentum: layouter.reserve(if trains { room_of(p) } else { 0 }),
            gradient: match (whole(&p), is_vector(&p)) {
                (false, _) => Region::default(),
                (true, true) => vector_gradient.first(room_of(p)),
                (true, false) => weight_gradient.first(room_of(p)),
            },
            filter_len: if p.shape.len() == 4 { p.shape[1..].iter().product() } else { 0 },
            strips: strips(p),
        });
        Ok(Parameters { tensors: tensors.collect(), shapes })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The first `T` tensors of `layer`: weights, biases, and of a batch normalization its mean and variance.
    pub fn of_layer<const T: usize>(&self, layer: usize) -> [Tensor; T] {
        let first = self.shapes.0.iter().position(|p| p.layer == layer).expect("this layer has parameters");
        std::array::from_fn(|t| self.tensors[first + t])
    }

    /// Copies the values of `params` in.
    ///
    /// Panics if these are the parameters of another network.
    pub fn set(&self, arena: &mut Arena, params: &Params) {
        self.copy_in(arena, params, |t| t.value);
    }

    /// Copies the values out.
    pub fn get(&self, arena: &Arena) -> Params {
        self.copy_out(arena, |t| t.value)
    }

    /// Copies momentum in, if the plan trains.
    ///
    /// Panics if it is that of another network.
    pub fn set_momentum(&self, arena: &mut Arena, momentum: &Params) {
        self.copy_in(arena, momentum, |t| t.momentum);
    }

    /// Copies the momentum out: zero if the plan does not train.
    pub fn momentum(&self, arena: &Arena) -> Params {
        self.copy_out(arena, |t| t.momentum)
    }

    fn copy_in(&self, arena: &mut Arena, params: &Params, place: fn(&Tensor) -> Region) {
        assert!(keys(params).eq(keys(&self.shapes)), "these are the parameters of another network");
        for (param, tensor) in params.0.iter().zip(&self.tensors) {
            if !place(tensor).is_empty() {
                tensor.strips.place(&param.data, arena.get_mut(place(tensor)));
            }
        }
    }

    fn copy_out(&self, arena: &Arena, place: fn(&Tensor) -> Region) -> Params {
        let mut params = self.shapes.clone();
        for (param, tensor) in params.0.iter_mut().zip(&self.tensors) {
            param.data = match arena.get(place(tensor)) {
                [] => vec![0.0; len(param)],
                data => tensor.strips.collect(data),
            };
        }
        params
    }
}

/// What tells one network's parameters from another's.
fn keys(params: &Params) -> impl Iterator<Item = (&str, &[usize])> {
    params.0.iter().map(|p| (p.name.as_str(), p.shape.as_slice()))
}

/// Elements of a tensor.
fn len(p: &Param) -> usize {
    p.shape.iter().product()
}
