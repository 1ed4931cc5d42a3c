//! The executor for the CPU in mixed precision: activations, their gradients and the operands of products are bf16; sums,
//! master weights, momentum, biases, the loss and the arithmetic of norms are f32. It follows the same [`Plan`] as the
//! f32 executor, one file a kind of stage, with the kernels of [`alexnet_kernels::bf16`], whose layouts it shares.
//!
//! Logits and their gradient are f32 rows. Stages that have no kernel for pairs (average pooling, activations other than
//! ReLU) widen their maps, run the f32 kernel and round the result.

mod conv;
mod dropout;
mod elementwise;
mod layouts;
mod linear;
mod norm_pool;

use crate::error::Result;
use crate::exec::contract::{Batch, StepSettings};
use crate::exec::frame::{Draft, Frame, Stages};
use crate::exec::plan::{Kind, Plan, Stage};
use crate::exec::stopwatch::Pass;
use crate::exec::{constants, only_f32};
use crate::net::{self, Activation, Network, Op, PoolKind};
use alexnet_kernels::arena::Region;
use alexnet_kernels::bf16::convert::{self, paired_len};
use alexnet_kernels::bf16::entry::{Entry, enter};
use alexnet_kernels::bf16::pooling::MOST_PLACES;
use alexnet_kernels::bf16::{self, Engine, MapLayout, TAIL, pairs};

/// A network planned for this processor, in mixed precision.
pub struct Mixed {
    frame: Frame,
    engine: Engine,
    stages: Vec<StageState>,
    /// How the pixels enter map 0.
    entry: Entry,
    /// How each map lies.
    layouts: Vec<MapLayout>,
    /// A stage's input with pictures paired, for its weight gradient; shared by all.
    paired: Region,
    /// What a stage computes before it pools that, or its gradient; shared by all.
    unpooled: Region,
    /// dy of a linear layer in rows of picture pairs; shared by all.
    dy_rows: Region,
    /// Maps as f32, for stages without a kernel for pairs: x, y, dy, dx.
    wide: [Region; 4],
    /// (N, classes)
    logits: Region,
    /// (N, classes)
    logits_gradient: Region,
}

/// What a stage keeps besides its maps.
enum StageState {
    Conv(Box<conv::State>),
    Linear(Box<linear::State>),
    Lrn(alexnet_kernels::lrn::Lrn),
    SpatialLrn(alexnet_kernels::spatial_lrn::SpatialLrn),
    Pool(norm_pool::PoolState),
    LrnPool(Box<norm_pool::LrnPoolState>),
    Plain,
}

/// Why `net` under this plan, one of [`Plan::mixed`], is not computed in mixed precision, if it is not.
pub fn unsupported(net: &Network, plan: &Plan) -> Option<String> {
    planned(net, plan).err()
}

/// How pixels enter, and the layout of every map.
///
/// # Errors
/// Why the network is not computed.
fn planned(net: &Network, plan: &Plan) -> std::result::Result<(Entry, Vec<MapLayout>), String> {
    if plan.rule.needs_whole_gradients() {
        return Err("this update rule needs whole gradients, which linear layers in bf16 do not store".into());
    }
    for layer in &net.layers {
        let why = match &layer.op {
            Op::Pool(pool) if pool.kind == PoolKind::Max && pool.size * pool.size > MOST_PLACES => {
                format!("max pooling over more than {MOST_PLACES} places")
            }
            Op::BatchNorm(_) => "batch normalization is computed in f32 only".into(),
            _ => continue,
        };
        return Err(format!("layer {}: {why}", layer.name));
    }
    layouts::of(net, plan)
}

/// The pooling that a stage ends with.
fn pool_at_end<'a>(net: &'a Network, stage: &Stage) -> &'a net::Pool {
    let last = &net.layers[stage.layers.end - 1];
    let Op::Pool(pool) = &last.op else { unreachable!("layer {} is a pooling", last.name) };
    pool
}

impl Mixed {
    /// Plans `net` on `threads` threads with `engine`. `plan` is one of [`Plan::mixed`]. Parameters are zero.
    ///
    /// # Errors
    /// As [`Plan::mixed`]; if the network has a layer that is not computed in mixed precision; if the memory that the
    /// plan needs is not there.
    pub fn new(net: &Network, plan: Plan, engine: Engine, threads: usize) -> Result<Mixed> {
        let (entry, layouts) = planned(net, &plan).map_err(|why| only_f32(net, &why))?;
        let (trains, blocks) = (plan.trains(), plan.blocks());
        let last = layouts.len() - 1;
        let rows_at_end = plan.ends_with_linear_logits();
        let traced = net.trace()?;
        let enters = match net.layers.first().map(|layer| &layer.op) {
            Some(Op::Conv(op)) => {
                conv::State::enters(&plan, engine, 0, op, &entry, &layouts, traced[0].output)
            }
            _ => false,
        };
        // At test time a linear layer's rounded weights can be in the order of any map. Then that is what it reads.
        let unflattened = |i: usize| {
            let linear = plan.stages.get(i + 1).is_some_and(|next| matches!(next.kind, Kind::Linear { .. }));
            let flattens = matches!(plan.stages[i].kind, Kind::Flatten);
            !plan.trains() && flattens && linear && layouts[i].lies_flat()
        };
        let mut draft = Draft::new(
            net,
            &plan,
            bf16::linear::strips,
            |i| blocks * layouts[i].block_len() + TAIL,
            |i| !(i == last && rows_at_end || i == 0 && enters || i > 0 && unflattened(i - 1)),
        )?;
        draft.scratch(entry.scratch_len());
        let mut stages = vec![];
        let (mut paired, mut unpooled, mut dy_rows, mut wide) = (0, 0, 0, [0; 4]);
        for (i, stage) in plan.stages.iter().enumerate() {
            let op = stage.layers.clone().next().map(|layer| &net.layers[layer].op);
            let mut widens = false;
            stages.push(match (&stage.kind, op) {
                (Kind::Conv { relu, pool }, Some(Op::Conv(op))) => {
                    let output = traced[stage.layers.start].output;
                    let pool = pool.then(|| pool_at_end(net, stage));
                    let state = conv::State::new(&plan, engine, i, op, &entry, &layouts, output, *relu, pool);
                    paired = paired.max(state.paired_len(blocks));
                    unpooled = unpooled.max(state.unpooled_len(blocks));
                    draft.scratch(state.scratch_len());
                    StageState::Conv(Box::new(state))
                }
                (Kind::Linear { relu }, Some(Op::Linear(op))) => {
                    let map = (i > 0 && unflattened(i - 1)).then(|| layouts[i - 1]);
                    let logits = i == last - 1 && rows_at_end;
                    let state = linear::State::new(&plan, i, op.outputs, *relu, logits, map);
                    if trains {
                        paired = paired.max(paired_len(&layouts[i], [0, 0], blocks));
                        dy_rows = dy_rows.max(bf16::linear::unzipped_len(op.outputs, blocks));
                    }
                    draft.scratch(bf16::linear::scratch_len(blocks));
                    StageState::Linear(Box::new(state))
                }
                (Kind::Lrn, Some(Op::Lrn(op))) => {
                    let lrn = constants::lrn(op, layouts[i].channels);
                    draft.scratch(bf16::lrn::scratch_len(&lrn));
                    StageState::Lrn(lrn)
                }
                (Kind::LrnPool, Some(Op::Lrn(op))) => {
                    let state = norm_pool::LrnPoolState {
                        lrn: constants::lrn(op, layouts[i].channels),
                        pool: norm_pool::PoolState::new(
                            pool_at_end(net, stage),
                            &layouts[i],
                            &layouts[i + 1],
                            blocks,
                            stage.input_gradient,
                        ),
                    };
                    draft.scratch(state.op().scratch_len());
                    StageState::LrnPool(Box::new(state))
                }
                (Kind::SpatialLrn, Some(Op::SpatialLrn(op))) => {
                    let map = &layouts[i];
                    let lrn = constants::spatial_lrn(op, map.height, map.width, norm_pool::depth(map));
                    draft.scratch(bf16::spatial_lrn::scratch_len(&lrn, map));
                    StageState::SpatialLrn(lrn)
                }
                (Kind::Pool, Some(Op::Pool(op))) => {
                    let state = norm_pool::PoolState::new(
                        op,
                        &layouts[i],
                        &layouts[i + 1],
                        blocks,
                        stage.input_gradient,
                    );
                    widens = state.widens();
                    StageState::Pool(state)
                }
                (Kind::Activation, Some(Op::Activation(f))) => {
                    widens = *f != Activation::Relu;
                    StageState::Plain
                }
                _ => StageState::Plain,
            });
            if widens {
                let [from, to] = [i, i + 1].map(|map| 2 * blocks * layouts[map].block_len());
                let back = if stage.input_gradient { [to, from] } else { [0, 0] };
                for (wide, len) in wide.iter_mut().zip([from, to].into_iter().chain(back)) {
                    *wide = len.max(*wide);
                }
            }
        }
        let rows = if plan.ends_with_loss() { plan.batch * net.classes() } else { 0 };
        let mut reserve = |len| draft.layouter.reserve(len);
        let [paired, unpooled, dy_rows] = [paired, unpooled, dy_rows].map(&mut reserve);
        let wide = wide.map(&mut reserve);
        let (logits, logits_gradient) = (reserve(rows), reserve(if trains { rows } else { 0 }));
        let as_they_lie: Vec<usize> = (0..plan.stages.len()).filter(|&i| unflattened(i)).collect();
        let mut frame = draft.build(net, plan, engine.isa(), threads)?;
        for i in as_they_lie {
            frame.maps[i + 1] = frame.maps[i];
        }
        Ok(Mixed {
            frame,
            engine,
            stages,
            entry,
            layouts,
            paired,
            unpooled,
            dy_rows,
            wide,
            logits,
            logits_gradient,
        })
    }

    /// Pictures that kernels compute: in training whole blocks, so that every lane of a gradient is defined.
    fn pictures(&self, batch: &Batch) -> usize {
        let plan = &self.frame.plan;
        if plan.trains() { batch.count.next_multiple_of(plan.block) } else { batch.count }
    }

    /// Elements of map `i` in the blocks in which the batch has pictures.
    fn used(&self, i: usize, batch: &Batch) -> usize {
        self.frame.blocks(batch) * self.layouts[i].block_len()
    }
}

impl Stages for Mixed {
    const VALUE_BYTES: usize = size_of::<u16>();

    fn by_winograd(&self, i: usize, pass: Pass) -> bool {
        matches!(&self.stages[i], StageState::Conv(state) if state.by_winograd(pass))
    }

    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn frame_mut(&mut self) -> &mut Frame {
        &mut self.frame
    }

    fn arithmetic(&self) -> &'static str {
        "bf16"
    }

    fn instructions(&self) -> &'static str {
        self.engine.name()
    }

    fn bytes_outside_arena(&self) -> usize {
        let bytes = self.stages.iter().map(|s| match s {
            StageState::Conv(state) => state.bytes(),
            StageState::Linear(state) => state.bytes(),
            StageState::Pool(state) => state.bytes(),
            StageState::LrnPool(state) => state.pool.bytes(),
            _ => 0,
        });
        bytes.sum()
    }

    fn pack(&mut self, i: usize) {
        match self.stages[i] {
            StageState::Conv(_) => self.conv_pack(i),
            StageState::Linear(_) => self.linear_pack(i),
            _ => {}
        }
    }

    /// Pixels, folded and rounded, to map 0.
    fn enter(&mut self, batch: &Batch) {
        let Frame { maps, arena, ctx, watch, .. } = &mut self.frame;
        if maps[0].is_empty() {
            // The first convolution makes it as it goes.
            return;
        }
        enter(ctx, self.engine, &self.entry, batch.count, batch.input, arena.get_mut(maps[0]));
        watch.lap(0, Pass::Input);
    }

    fn forward(&mut self, i: usize, batch: &Batch, masks: Option<&StepSettings>) {
        match self.frame.plan.stages[i].kind {
            Kind::Conv { .. } => self.conv_forward(i, batch),
            Kind::Linear { .. } => self.linear_forward(i, batch),
            Kind::Lrn | Kind::SpatialLrn | Kind::Pool | Kind::LrnPool => self.norm_pool_forward(i, batch),
            Kind::Activation => self.activation_forward(i, batch),
            Kind::Dropout => self.dropout_forward(i, batch, masks),
            Kind::BatchNorm => unreachable!("refused when the executor was made"),
            // What reads it takes it as it lies.
            Kind::Flatten if self.frame.maps[i] == self.frame.maps[i + 1] => {}
            Kind::Flatten => self.flatten_forward(i, batch),
        }
    }

    fn backward(&mut self, i: usize, batch: &Batch, settings: &StepSettings) -> bool {
        match self.frame.plan.stages[i].kind {
            Kind::Conv { .. } => return self.conv_backward(i, batch, settings),
            Kind::Linear { .. } => return self.linear_backward(i, batch, settings),
            Kind::Lrn | Kind::SpatialLrn | Kind::Pool | Kind::LrnPool => self.norm_pool_backward(i, batch),
            Kind::Activation => self.activation_backward(i, batch),
            Kind::Dropout => self.dropout_backward(i, batch, settings),
            Kind::BatchNorm => unreachable!("refused when the executor was made"),
            Kind::Flatten => self.flatten_backward(i, batch),
        }
        true
    }

    fn is_finite(&self, i: usize, batch: &Batch) -> bool {
        const EXPONENT: u32 = 0x7f80;
        let finite = |pair: &u32| pair & EXPONENT != EXPONENT && pair >> 16 & EXPONENT != EXPONENT;
        let Frame { maps, arena, .. } = &self.frame;
        if maps[i].is_empty() {
            return arena.get(self.logits).iter().all(|x| x.is_finite());
        }
        pairs(arena.get(maps[i].first(self.used(i, batch)))).iter().all(finite)
    }

    /// Rows, also if the network ends with something else than a linear layer.
    fn logits(&mut self, count: usize) -> (Region, Region) {
        let last = self.layouts.len() - 1;
        let Frame { maps, arena, net, .. } = &mut self.frame;
        if !maps[last].is_empty() {
            let rows = self.logits.first(count * net.classes());
            let ([map], [rows]) = arena.split([maps[last]], [rows]);
            convert::to_canonical(&self.layouts[last], count, map, rows);
        }
        (self.logits, self.logits_gradient)
    }

    fn enter_backward(&mut self, batch: &Batch) {
        let last = self.layouts.len() - 1;
        let Frame { gradients, arena, net, ctx, .. } = &mut self.frame;
        let ([dz], [to]) = arena.split([self.logits_gradient], [gradients[last]]);
        convert::from_rows(ctx, net.classes(), batch.count, dz, to);
    }

    fn copy_last_map(&self, count: usize, output: &mut [f32]) {
        let last = self.layouts.len() - 1;
        let map = self.frame.arena.get(self.frame.maps[last]);
        convert::to_canonical(&self.layouts[last], count, map, output);
    }
}
